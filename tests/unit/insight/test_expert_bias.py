"""The bias on the choice of experts, against loops over clients and experts."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmoe.insight import Insight, MetaLearner
from fedmoe.insight.insight import SCALARS, WHOLE
from fedmoe.schema import ExpertBiasPolicyConfig, MetaLearnerConfig

SAMPLES = [10, 30, 1, 12]
LOADS = [[0.5, 0.5, 0.0], [0.2, 0.6, 0.2], [0.0, 0.0, 1.0], [0.3, 0.5, 0.2]]


def learner(rule: Any = "error", rate: float = 0.1) -> MetaLearner:
    return MetaLearner(MetaLearnerConfig(expert_bias=ExpertBiasPolicyConfig(rate=rate, rule=rule)))


def insights(
    loads: Sequence[Sequence[float]],
    samples: Sequence[int],
    clients: Sequence[int] = (0, 1, 2, 3),
    round: int = 1,
    importance: Sequence[float] | None = None,
) -> list[Insight]:
    numbers: dict[str, Any] = {n: 1 if n in WHOLE else 0.5 for n in SCALARS}
    return [
        Insight(
            **numbers | {"client_id": client, "round": round, "num_examples": count},
            payload={
                "expert_load": np.array(load, np.float32),
                "expert_importance": np.array(importance or [1 / 3] * 3, np.float32)
                * np.float32(sum(load)),
            },
        )
        for client, load, count in zip(clients, loads, samples, strict=False)
    ]


def bias_of(one: MetaLearner, client: int = 0) -> NDArray[np.float32]:
    found: NDArray[np.float32] = one.guidance(client).parts["expert_bias"]
    return found


def shares(loads: Sequence[Sequence[float]], samples: Sequence[int]) -> list[float]:
    """Over all samples."""
    slots = [0.0] * 3
    for load, count in zip(loads, samples, strict=True):
        for e in range(3):
            slots[e] += count * load[e]
    return [one / sum(samples) for one in slots]


@pytest.mark.parametrize("rule", ["sign", "error"])
def test_the_bias_is_a_loop_over_rounds_and_experts(rule: str) -> None:
    one, expected = learner(rule), [0.0] * 3
    assert one.reads == ("expert_load",)
    for round, loads in enumerate([LOADS, LOADS[::-1], LOADS], start=1):
        one.observe(round, insights(loads, SAMPLES, round=round))
        share = shares(loads, SAMPLES)
        for e in range(3):
            away = 1 / 3 - share[e]
            expected[e] += 0.1 * (float(np.sign(away)) if rule == "sign" else 3 * away)
        for client in (0, 99, -1):
            np.testing.assert_allclose(bias_of(one, client), expected, atol=1e-6)
        decided = one.history[-1]["decisions"]["expert_bias"]
        mean = sum(share) / 3
        spread = sum((f / mean - 1) ** 2 for f in share) / 3
        assert decided["variation"] == pytest.approx(spread**0.5, rel=1e-5)
        assert decided["max_violation"] == pytest.approx(max(share) / mean - 1, rel=1e-5)
        assert decided["load"] == pytest.approx(share, rel=1e-5) and decided["reason"]


def test_only_the_round_s_own_clients_count() -> None:
    one = learner()
    one.observe(1, insights(LOADS, SAMPLES))
    first = bias_of(one).astype(np.float64)
    one.observe(2, insights(LOADS[1:3], SAMPLES[1:3], clients=(1, 2), round=2))
    share = shares(LOADS[1:3], SAMPLES[1:3])
    step = [0.1 * (1 - 3 * f) for f in share]
    np.testing.assert_allclose(bias_of(one), first + step, atol=1e-6)


def test_a_round_without_loads_and_clients_of_few_samples_move_nothing() -> None:
    one = learner()
    assert not one.guidance(0).parts
    one.observe(1, insights([[0, 0, 0]], [1]))
    assert not one.guidance(0).parts
    one.observe(2, insights([*LOADS, [0, 0, 0]], [*SAMPLES, 1], clients=range(5), round=2))
    np.testing.assert_allclose(
        bias_of(one), [0.1 * (1 - 3 * f) for f in shares(LOADS, SAMPLES)], atol=1e-6
    )


def test_who_claims_many_samples_is_cut_and_named() -> None:
    one = learner()
    one.observe(1, insights(LOADS, [10, 10, 10**9, 10]))
    share = shares(LOADS, [10, 10, 100, 10])
    np.testing.assert_allclose(bias_of(one), [0.1 * (1 - 3 * f) for f in share], atol=1e-6)
    assert one.history[-1]["decisions"]["expert_bias"]["cut"] == [2]


def test_experts_that_nobody_has_are_left_alone() -> None:
    one = learner("sign")
    one.observe(1, insights([[1.0, 0, 0]] * 4, SAMPLES, importance=[1, 0, 0]))
    assert bias_of(one).tolist() == [0, 0, 0]
    two = learner("error")
    two.observe(1, insights([[0.8, 0.2, 0]] * 4, SAMPLES, importance=[0.6, 0.4, 0]))
    np.testing.assert_allclose(bias_of(two), [-0.06, 0.06, 0], atol=1e-6)


def test_the_bias_stays_where_it_can_change_a_choice() -> None:
    one = learner("sign", rate=0.4)
    for round in range(1, 5):
        one.observe(round, insights(LOADS, SAMPLES, round=round))
    assert np.abs(bias_of(one)).tolist() == [1, 1, 1]


def test_it_goes_on_from_a_saved_state() -> None:
    one = learner()
    one.observe(1, insights(LOADS, SAMPLES))
    arrays, values = one.state()
    resumed = learner()
    resumed.restore(arrays, json.loads(json.dumps(values)))
    for each in (one, resumed):
        each.observe(2, insights(LOADS, SAMPLES, round=2))
    np.testing.assert_array_equal(bias_of(one), bias_of(resumed))
    empty = learner()
    empty.restore(*learner().state())
    assert not empty.guidance(0).parts
