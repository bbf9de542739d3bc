"""Which experts a client holds that has room for only some of them."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from assignment_oracle import PlainAssignment

from fedmoe.strategies.assignment import ExpertAssignment

FAR = 2**64 - 5  # Flower's node ids are any 64 bits


def play(mine: ExpertAssignment, plain: PlainAssignment, seed: int, rounds: int) -> list[list[int]]:
    """Rounds of some clients each, compared in all that can be asked."""
    rng, chosen = np.random.default_rng(seed), []
    for number in range(1, rounds + 1):
        nodes = [FAR - n for n in rng.permutation(7)[: rng.integers(1, 6)].tolist()]
        everyone = [FAR - n for n in range(9)]
        index_CM = mine.choose(nodes, explore=True)
        assert index_CM.tolist() == plain.choose(nodes, explore=True)
        fit_CM = rng.standard_normal(index_CM.shape).round(1)  # ties, too
        mine.note(nodes, number, index_CM, fit_CM)
        proven_CM = mine.proven(nodes, index_CM)
        for row, node in enumerate(nodes):
            own = index_CM[row].tolist()
            plain.note(node, number, dict(zip(own, fit_CM[row].tolist(), strict=True)))
            best = plain.choose([node], explore=False)[0]
            expected = [plain.knows_all(node) and e in best for e in own]
            assert proven_CM[row].tolist() == expected
        best_CM = mine.choose(everyone, explore=False)
        assert best_CM.tolist() == plain.choose(everyone, explore=False)
        chosen += index_CM.tolist()
    return chosen


@pytest.mark.parametrize("held", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_experts_are_assigned_as_by_a_loop(held: int, seed: int) -> None:
    play(ExpertAssignment(4, held), PlainAssignment(4, held), seed, rounds=40)


def test_a_presumption_is_what_counts_until_something_is_known() -> None:
    """A client is not sent what it is presumed not to need, before the time of trials."""
    mine, plain = ExpertAssignment(4, 1), PlainAssignment(4, 1)
    presumed = {FAR: 2, FAR - 1: 0}
    mine.presume(list(presumed), 1, np.array(list(presumed.values())))
    for node, expert in presumed.items():
        assert mine.choose([node], explore=True).tolist() == [[expert]]
        assert mine.proven([node], np.array([[expert]])).tolist() == [[True]]
        plain.note(node, 1, {**dict.fromkeys(range(4), -np.inf), expert: 0.0})
    play(mine, plain, seed=0, rounds=40)


@pytest.mark.parametrize("held", [1, 2])
def test_the_best_are_found_and_all_are_tried_again(held: int) -> None:
    """Each fifth time, one of the others is there; none is forgotten, and what is best changes."""
    fit = np.array([-3.0, -1.0, -4.0, -2.0])
    mine, tried = ExpertAssignment(4, held), []
    for number in range(1, 61):
        if number == 31:
            fit = fit[::-1]
        index_CM = mine.choose([7], explore=True)
        mine.note([7], number, index_CM, fit[index_CM])
        best = np.sort(np.argsort(-fit)[:held])
        tried.append(index_CM[0].tolist() != best.tolist())
        if number in (10, 30, 60):
            assert mine.choose([7], explore=False)[0].tolist() == best.tolist()
    assert sum(tried[10:30]) == 4
    assert (mine.last_KE > 30).all()


def test_all_experts_are_held_by_somebody_from_the_beginning() -> None:
    index_CM = ExpertAssignment(4, 2).choose(range(4), explore=True)
    assert np.bincount(index_CM.flatten(), minlength=4).tolist() == [2, 2, 2, 2]


def test_to_ask_changes_nothing() -> None:
    mine = ExpertAssignment(4, 2)
    first = mine.choose([3, 1], explore=True)
    mine.choose([9, 8, 1], explore=False)
    assert mine.nodes == [] and (mine.choose([3, 1], explore=True) == first).all()


def counts(index_CM: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Sequence[int]:
    found: list[int] = np.bincount(index_CM.flatten(), minlength=4).tolist()
    return found


def test_random_experts_are_a_clients_own_for_good() -> None:
    mine, other = ExpertAssignment(4, 2, "random", 1), ExpertAssignment(4, 2, "random", 2)
    nodes = list(range(2, 402))
    index_CM = mine.choose(nodes, explore=True)
    assert (np.diff(index_CM) > 0).all()
    assert all(170 < count < 230 for count in counts(index_CM))
    assert (index_CM != other.choose(nodes, explore=True)).any()
    mine.note(nodes, 1, index_CM, -np.ones(index_CM.shape))
    assert mine.proven(nodes, index_CM).all()
    mine.note(nodes, 5, index_CM, -np.arange(800.0).reshape(400, 2))
    for explore in (False, True):
        assert (mine.choose(nodes, explore=explore) == index_CM).all()
        assert (mine.choose(nodes[::-1], explore=explore) == index_CM[::-1]).all()


def test_a_checkpoint_keeps_all_of_it() -> None:
    mine, plain = ExpertAssignment(4, 2), PlainAssignment(4, 2)
    play(mine, plain, seed=5, rounds=12)
    arrays, values = mine.state()
    again = ExpertAssignment(4, 2)
    again.restore({name: a.copy() for name, a in arrays.items()}, json.loads(json.dumps(values)))
    before = {name: array.tobytes() for name, array in mine.state()[0].items()}
    play(again, plain, seed=6, rounds=12)
    assert {name: array.tobytes() for name, array in mine.state()[0].items()} == before
