"""Oort and power-of-choice, each against a loop over clients."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from told import add_round

from fedmoe.insight import Memory
from fedmoe.insight.policies import Setting
from fedmoe.insight.policies.selection import Selection, utilities
from fedmoe.schema import SelectionPolicyConfig

CONFIG = SelectionPolicyConfig(
    kind="oort", candidates=2.0, exploration=0.9, exploration_decay=0.98, exploration_min=0.2,
    clip=0.9, cut_off=0.95,
)  # fmt: skip
POWER = replace(CONFIG, kind="power_of_choice")


def policy(config: SelectionPolicyConfig, seed: int = 0) -> Selection:
    made = Selection(config)
    made.setting = Setting(seed=seed)
    return made


def memory_of(clients: int, seed: int = 0) -> Memory:
    """All told in round 1, the even ones again in round 3."""
    rng, memory = np.random.default_rng(seed), Memory(9)
    for round, ids in ((1, range(clients)), (3, range(0, clients, 2))):
        size = len(ids)
        losses = {name: rng.uniform(0.1, 2.0, size).tolist() for name in ("final_loss",)}
        add_round(
            memory,
            round,
            {
                "client_id": list(ids),
                "num_examples": rng.integers(5, 50, size).tolist(),
                "loss_improvement": rng.uniform(0.0, 1.0, size).tolist(),
                **losses,
            },
        )
    return memory


def choose(
    one: Selection, memory: Memory, clients: int, count: int, round: int = 4
) -> NDArray[np.int64]:
    places = one.select(memory, round, np.arange(clients), count)
    assert places is not None
    assert len(places) == count == len(set(places.tolist()))
    return places


@pytest.mark.parametrize("clip", [0.5, 1.0])
def test_utility_is_the_formula_client_by_client(clip: float) -> None:
    rng = np.random.default_rng(1)
    size, loss, last = rng.integers(5, 50, 11), rng.uniform(0.0, 3.0, 11), rng.integers(1, 9, 11)
    values = [int(n) * float(x) for n, x in zip(size, loss, strict=True)]
    most = sorted(values)[min(int(11 * clip), 10)]
    low, high = 0.999 * min(values), max(values)
    expected = [
        (min(value, most) - low) / (high - low) + math.sqrt(0.1 * math.log(9) / int(t))
        for value, t in zip(values, last, strict=True)
    ]
    np.testing.assert_allclose(utilities(size, loss, last, 9, clip), expected)


def test_oort_asks_the_most_useful_of_those_it_knows() -> None:
    memory, clients, count = memory_of(20), 20, 6
    current = {one.client_id: one for one in memory.current()}
    utility = utilities(
        np.array([current[c].num_examples for c in range(clients)]),
        np.array([current[c].final_loss + current[c].loss_improvement for c in range(clients)]),
        np.array([current[c].round for c in range(clients)]),
        4, CONFIG.clip,
    )  # fmt: skip
    cut_off = 0.95 * sorted(utility)[-count]
    asked: set[int] = set()
    for seed in range(30):
        one = policy(CONFIG, seed)
        asked |= set(choose(one, memory, clients, count).tolist())
        assert one.decisions["cut_off"] == pytest.approx(cut_off)
    assert asked == {c for c in range(clients) if utility[c] >= cut_off}


@pytest.mark.parametrize(("round", "new"), [(1, 9), (4, 8), (500, 2)])
def test_oort_leaves_room_for_new_clients(round: int, new: int) -> None:
    """int(10 (1 - max(.9 * .98^(round - 1), .2))) of those known, the rest are new."""
    one = policy(CONFIG)
    places = choose(one, memory_of(20), 60, 10, round)
    assert (places >= 20).sum() == one.decisions["new"] == new


def test_exploration_falls_by_its_decay_from_round_to_round() -> None:
    config = replace(CONFIG, exploration=0.5, exploration_decay=0.5, exploration_min=0.01)
    memory = memory_of(100)
    for round, new in ((1, 20), (2, 10), (4, 3), (40, 0)):
        assert (choose(policy(config), memory, 300, 40, round) >= 100).sum() == new


def test_among_the_useful_oort_draws_by_utility() -> None:
    memory = Memory(3)
    add_round(memory, 1, {"num_examples": [10, 10, 10], "final_loss": [3.0, 2.0, 1.0]})
    config = replace(CONFIG, cut_off=1e-9, clip=1.0)
    utility = utilities(np.full(3, 10), np.array([3.1, 2.1, 1.1]), np.ones(3, np.int64), 9, 1.0)
    asked = [choose(policy(config, seed), memory, 3, 1, 9).item() for seed in range(600)]
    # The threshold is a share of the best's utility, so that all three are above it.
    for client in range(3):
        share = utility[client] / utility.sum()
        assert asked.count(client) / 600 == pytest.approx(share, abs=0.06)


def test_oort_asks_others_where_there_are_too_few_of_a_kind() -> None:
    assert (choose(policy(CONFIG), memory_of(20), 21, 10) >= 20).sum() == 1
    known = Memory(3)
    add_round(known, 1, {"num_examples": [9, 9], "final_loss": [1.0, 2.0]})
    assert (choose(policy(CONFIG), known, 60, 30, 500) < 2).sum() == 2
    assert len(choose(policy(CONFIG), Memory(3), 9, 5, 1)) == 5


@pytest.mark.parametrize("candidates", [1.0, 2.0, 5.0])
def test_power_of_choice_asks_for_the_largest_losses_of_its_candidates(candidates: float) -> None:
    memory = memory_of(12)
    current = {one.client_id: one for one in memory.current()}
    loss = [current[c].final_loss + current[c].loss_improvement for c in range(12)]
    size = np.array([current[c].num_examples for c in range(12)], float)
    one = policy(replace(POWER, candidates=candidates), seed=5)
    found = choose(one, memory, 12, 4)
    rng = np.random.default_rng([5, 0x6F6F7274, 4])
    drawn = rng.choice(
        12, size=min(math.ceil(4 * candidates), 12), replace=False, p=size / size.sum()
    )
    assert set(found.tolist()) == set(sorted(drawn.tolist(), key=lambda c: -loss[c])[:4])


def test_power_of_choice_asks_those_first_that_it_does_not_know() -> None:
    one = policy(replace(POWER, candidates=100.0))
    places = choose(one, memory_of(12), 15, 5)
    assert {12, 13, 14} < set(places.tolist())
    assert one.decisions["new"] == 3


def test_larger_clients_are_candidates_more_often() -> None:
    memory = Memory(3)
    add_round(memory, 1, {"num_examples": [90, 10, 10], "final_loss": [1.0, 1.0, 1.0]})
    one = replace(POWER, candidates=1.0)
    first = [choose(policy(one, seed), memory, 3, 1).item() for seed in range(300)]
    assert first.count(0) / 300 == pytest.approx(90 / 110, abs=0.08)


@pytest.mark.parametrize("config", [CONFIG, POWER])
def test_draws_repeat_with_seed_and_round(config: SelectionPolicyConfig) -> None:
    memory = memory_of(20)
    runs = [
        [choose(policy(config, seed), memory, 60, 8, r).tolist() for r in range(4, 12)]
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert len({tuple(sorted(places)) for places in runs[0]}) > 5


def test_uniform_leaves_it_to_the_strategy() -> None:
    one = policy(replace(CONFIG, kind="uniform"))
    assert one.select(memory_of(9), 4, np.arange(9), 3) is None


@pytest.mark.parametrize("value", [0.0, -1.0, 1e12])
@pytest.mark.parametrize("config", [CONFIG, POWER])
def test_strange_losses_do_not_stop_it(config: Any, value: float) -> None:
    memory = Memory(3)
    add_round(memory, 1, {"final_loss": [value] * 3 + [1.0], "loss_improvement": [0.0] * 4})
    choose(policy(config), memory, 4, 2, 2)


@pytest.mark.parametrize("config", [CONFIG, POWER])
def test_nobody_is_asked_without_end(config: SelectionPolicyConfig) -> None:
    """A client whose loss is the largest in every round has to wait, and an absurd one is none."""
    memory, asked = Memory(50), []
    add_round(memory, 1, {"num_examples": [10] * 12, "final_loss": [1.0 + k for k in range(12)]})
    for round in range(2, 40):
        chosen = choose(policy(config, round), memory, 12, 3, round).tolist()
        asked += chosen
        losses = [9.0 if k == 11 else 1.0 for k in chosen]
        add_round(memory, round, {"client_id": chosen, "num_examples": [10] * 3,
                                  "final_loss": losses})  # fmt: skip
    assert asked.count(11) <= 1.5 * len(asked) / 12 + 2
    assert min(asked.count(k) for k in range(12)) > 0


@pytest.mark.parametrize("config", [CONFIG, POWER])
def test_who_does_not_answer_waits_longer_and_longer(config: SelectionPolicyConfig) -> None:
    one, asked_in = policy(config), []
    memory = memory_of(8)
    for round in range(4, 40):
        places = choose(one, memory, 9, 4, round).tolist()
        if 8 in places:  # never told anything
            asked_in.append(round)
        one.answered({k: None if k == 8 else k for k in places})
        one.learn(memory, round)
        arrays, values = one.state()
        one = policy(config)
        one.restore(memory, arrays, values)
    assert len(asked_in) <= 6
    assert asked_in == sorted(asked_in) and asked_in[0] == 4
    gaps = np.diff(asked_in)
    assert all(gap >= 2 ** (n + 1) for n, gap in enumerate(gaps.tolist()))
