"""The policy `gaussians`: two trips, a cluster at a time, and what makes it tell anew."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmoe.insight import Guidance, Insight, MetaLearner
from fedmoe.insight.insight import SCALARS, WHOLE
from fedmoe.insight.payloads.products import packed, unpacked
from fedmoe.insight.policies import Setting
from fedmoe.schema import GaussiansPolicyConfig, MetaLearnerConfig

CLASSES, FEATURES, RANK = 3, 6, 2
BASIS = {"gaussian_basis"}
MOMENTS = {"gaussian_means", "gaussian_weight", "gaussian_residual"}
ALL = {*BASIS, *MOMENTS, "gaussian_spread"}


def samples(client: int, rule: int = 0) -> list[NDArray[np.float64]]:
    """A client's inputs by class; another rule calls the classes by other names."""
    rng = np.random.default_rng(client)
    width_D = np.array([1.0, 0.6, 0.1, 0.1, 0.1, 0.1])
    drawn = [
        4 * np.eye(FEATURES)[3 + (label + rule) % CLASSES]
        + width_D * (1 + label) * rng.standard_normal((8, FEATURES))
        for label in range(CLASSES)
    ]
    return [own.astype(np.float32).astype(np.float64) for own in drawn]


def payload(
    client: int, rule: int, basis_Dr: NDArray[Any] | None, covariance: str
) -> dict[str, NDArray[np.float32]]:
    own = samples(client, rule)
    products = np.array([x.T @ x for x in own])
    told: dict[str, Any] = {
        "prototype_count": [len(x) for x in own],
        "prototype_sum": [x.sum(axis=0) for x in own],
        "class_trace": [((x - x.mean(axis=0)) ** 2).sum() for x in own],
        "gaussian_count": [len(x) for x in own],
        "gaussian_sum": [x.sum(axis=0) for x in own],
    }
    if covariance == "pooled":
        told["gaussian_totals"] = [(x**2).sum() for x in own]
        told["gaussian_products"] = packed(products.sum(axis=0))
        if basis_Dr is not None:
            told["spread_products"] = packed(basis_Dr.T @ products @ basis_Dr)
    elif covariance == "class":
        told["gaussian_products"] = packed(products)
    else:
        told["gaussian_squares"] = [(x**2).sum(axis=0) for x in own]
    return {name: np.array(array, dtype=np.float32) for name, array in told.items()}


def learner(of: Any = "cluster") -> MetaLearner:
    made = MetaLearner(MetaLearnerConfig(gaussians=GaussiansPolicyConfig(strength=3.0, of=of)))
    made.prepare(Setting(rank=RANK, seed=1))
    return made


def honest(told: dict[str, NDArray[np.float32]]) -> None:
    pass


def tell(
    one: MetaLearner,
    round: int,
    rules: Mapping[int, int],
    covariance: str = "pooled",
    liar: int = -1,
    lie: Callable[[dict[str, NDArray[np.float32]]], None] = honest,
) -> None:
    """Clients tell as they are asked: products in directions, once they have been told some."""
    numbers: dict[str, Any] = {n: 1 if n in WHOLE else 0.5 for n in SCALARS}
    numbers |= {"round": round, "num_examples": 8 * CLASSES, "volatility": 1.0}
    insights = []
    for client, rule in rules.items():
        basis_Dr = one.guidance(client).parts.get("gaussian_basis")
        told = payload(client, rule, basis_Dr, covariance)
        if client == liar:
            lie(told)
        insights.append(Insight(**numbers | {"client_id": client}, payload=told))
    one.observe(round, insights)


def check(advice: Guidance, clients: Sequence[int], rule: int = 0, fresh: bool = True) -> None:
    """The moments are those of the clients' samples together."""
    parts = advice.parts
    classes = [
        np.concatenate([samples(client, rule)[label] for client in clients])
        for label in range(CLASSES)
    ]
    centred = [x - x.mean(axis=0) for x in classes]
    freedom = sum(len(x) - 1 for x in classes)
    pooled = sum(x.T @ x for x in centred) / freedom
    np.testing.assert_allclose(
        parts["gaussian_means"], [x.mean(axis=0) for x in classes], rtol=1e-5
    )
    np.testing.assert_allclose(parts["gaussian_weight"], np.full(CLASSES, 1.0))
    basis_Dr = parts["gaussian_basis"].astype(np.float64)
    found, expected = basis_Dr @ basis_Dr.T, np.diag([1.0, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(found, expected, atol=0.1)
    inside = basis_Dr @ basis_Dr.T @ pooled @ basis_Dr @ basis_Dr.T
    residual_D = (pooled - inside).diagonal()
    np.testing.assert_allclose(parts["gaussian_residual"], residual_D, rtol=0.01, atol=1e-4)
    if not fresh:
        return
    for label, x in enumerate(centred):
        scatter = (x.T @ x + 10 * pooled) / (len(x) - 1 + 10)
        found = unpacked(parts["gaussian_spread"][label])
        np.testing.assert_allclose(found, basis_Dr.T @ scatter @ basis_Dr, rtol=1e-3, atol=1e-4)


def test_two_trips_make_the_gaussians_of_each_cluster() -> None:
    one, rules = learner(), {0: 0, 1: 1, 2: 0, 3: 1, 4: 0}
    assert one.guidance(0).parts == {}
    tell(one, 1, rules)
    assert {frozenset(one.guidance(k).parts) for k in rules} == {frozenset(BASIS)}
    assert one.guidance(9).parts == {}
    tell(one, 2, rules)
    for rule in (0, 1):
        own = [k for k in rules if rules[k] == rule]
        for client in own:
            assert one.guidance(client).parts.keys() == ALL
            check(one.guidance(client), own, rule)
    decided = one.history[-1]["decisions"]["gaussians"]
    assert decided["samples"] == [72, 48] == decided["samples_with_products"]


def test_what_is_known_is_not_told_again() -> None:
    one, rules = learner(), dict.fromkeys(range(12), 0)
    tell(one, 1, rules)
    basis = one.guidance(0).parts["gaussian_basis"]
    tell(one, 2, rules)
    before = one.guidance(0).parts
    assert before["gaussian_basis"] is basis
    tell(one, 3, rules)
    tell(one, 4, {12: 0})  # one more of a dozen changes little
    after = one.guidance(0).parts
    assert all(after[name] is before[name] for name in ALL)
    assert one.guidance(12).parts["gaussian_means"] is after["gaussian_means"]


def test_more_clients_are_heard_in_the_same_directions_and_many_more_in_new_ones() -> None:
    one, few, more = learner(), dict.fromkeys(range(4), 0), dict.fromkeys(range(4, 7), 0)
    for round in (1, 2):
        tell(one, round, few)
    basis = one.guidance(0).parts["gaussian_basis"]
    tell(one, 3, more)
    assert one.guidance(4).parts["gaussian_basis"] is basis
    tell(one, 4, more)
    assert one.guidance(0).parts["gaussian_basis"] is basis
    check(one.guidance(0), range(7))
    tell(one, 5, dict.fromkeys(range(7, 30), 0))
    new = one.guidance(0)
    assert new.parts["gaussian_basis"] is not basis
    check(new, range(30), fresh=False)
    for label in range(CLASSES):  # until it is told, all spread alike
        expected = new.parts["gaussian_spread"][0]
        np.testing.assert_array_equal(new.parts["gaussian_spread"][label], expected)
    # Products that were told in the old directions do not count in the new ones.
    tell(one, 6, {0: 0, 20: 0})
    assert one.history[-1]["decisions"]["gaussians"]["samples_with_products"] == [48]
    tell(one, 7, dict.fromkeys(range(30), 0))
    check(one.guidance(5), range(30))


@pytest.mark.parametrize("covariance", ["class", "diagonal"])
def test_one_trip_is_enough_where_more_or_less_is_told(covariance: str) -> None:
    one, rules = learner(), dict.fromkeys(range(5), 0)
    tell(one, 1, rules, covariance)
    if covariance == "class":
        assert one.guidance(0).parts.keys() == ALL
        check(one.guidance(0), range(5))
    else:
        assert one.guidance(0).parts.keys() == MOMENTS
        whole = [np.concatenate([samples(k)[c] for k in range(5)]) for c in range(CLASSES)]
        scatter_OD = np.array([((x - x.mean(axis=0)) ** 2).sum(axis=0) for x in whole])
        pooled_D = scatter_OD.sum(axis=0) / (120 - CLASSES)
        expected = (scatter_OD + 10 * pooled_D) / (39 + 10)
        found = one.guidance(0).parts["gaussian_residual"]
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_the_federation_s_go_to_strangers_too() -> None:
    one = learner("federation")
    for round in (1, 2):
        tell(one, round, {0: 0, 1: 0, 2: 0})
    check(one.guidance(-1), range(3))
    assert one.reads == ("gaussians", "spreads")


@pytest.mark.parametrize("after", [1, 2, 4, 5])
def test_it_goes_on_from_a_saved_state(after: int) -> None:
    rounds = [dict.fromkeys(range(4), 0), dict.fromkeys(range(4), 0), {5: 1, 6: 1}, {5: 1, 6: 1},
              dict.fromkeys(range(7, 20), 0), dict.fromkeys(range(20), 0)]  # fmt: skip
    whole, first = learner(), learner()
    for round, rules in enumerate(rounds, start=1):
        tell(whole, round, rules)
    for round, rules in enumerate(rounds[:after], start=1):
        tell(first, round, rules)
    arrays, values = first.state()
    resumed = learner()
    resumed.restore(arrays, json.loads(json.dumps(values)))
    for round, rules in enumerate(rounds[after:], start=after + 1):
        tell(resumed, round, rules)
    for client in range(20):
        one, other = whole.guidance(client).parts, resumed.guidance(client).parts
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def times(name: str, factor: float) -> Callable[[dict[str, NDArray[np.float32]]], None]:
    def lie(told: dict[str, NDArray[np.float32]]) -> None:
        if name in told:
            told[name] = told[name] * np.float32(factor)

    return lie


@pytest.mark.parametrize("of", ["cluster", "federation"])
@pytest.mark.parametrize(
    ("name", "factor"),
    [("gaussian_count", 10), ("gaussian_sum", -1), ("gaussian_sum", 9), ("gaussian_totals", 30),
     ("spread_products", 1e6), ("spread_products", 0)],
)  # fmt: skip
def test_who_contradicts_itself_is_named_and_not_heard(name: str, factor: float, of: str) -> None:
    """In a federation that is not clustered, as far as medians tell."""
    if of == "federation" and (name, factor) == ("gaussian_sum", -1):
        return
    one, rules = learner(of), dict.fromkeys(range(8), 0)
    for round in (1, 2):
        tell(one, round, rules, liar=3, lie=times(name, factor))
    assert [each["client"] for each in one.history[-1]["suspects"]] == [3]
    check(one.guidance(0), [client for client in rules if client != 3])


def test_nobody_is_named_without_a_lie() -> None:
    one, rules = learner(), {client: client % 2 for client in range(8)}
    for round in (1, 2, 3):
        tell(one, round, rules)
        assert one.history[-1]["suspects"] == []


def test_where_nobody_is_believed_nothing_is_told() -> None:
    one, rules = learner(), {0: 0}
    tell(one, 1, rules, liar=0, lie=times("gaussian_sum", 2))
    assert one.guidance(0).parts == {}
