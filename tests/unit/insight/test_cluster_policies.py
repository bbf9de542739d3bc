"""Policies that go by clusters of clients: who is told what, when, and that it can be saved."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_clusters import clients_of

from fedmoe.insight import Insight, MetaLearner
from fedmoe.insight.insight import SCALARS, WHOLE
from fedmoe.insight.policies import Setting
from fedmoe.schema import (
    ExpertAssignmentPolicyConfig,
    MetaLearnerConfig,
    PrototypesPolicyConfig,
)

Told = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
ASSIGN = MetaLearnerConfig(expert_assignment=ExpertAssignmentPolicyConfig(by="classes"))
OWN = MetaLearnerConfig(prototypes=PrototypesPolicyConfig(strength=2.0, of="cluster"))
ALL = MetaLearnerConfig(prototypes=PrototypesPolicyConfig(strength=2.0, of="federation"))


def insights(told: Told, clients: Sequence[int], round: int = 1) -> list[Insight]:
    """What some of the clients say of their data."""
    names = ("prototype_count", "prototype_sum", "class_trace")
    numbers: dict[str, Any] = {n: 1 if n in WHOLE else 0.5 for n in SCALARS}
    return [
        Insight(
            **numbers | {"client_id": k, "round": round, "num_examples": 20},
            payload={
                name: array[k].astype(np.float32) for name, array in zip(names, told, strict=True)
            },
        )
        for k in clients
    ]


def learner(config: MetaLearnerConfig, num_experts: int | None = None) -> MetaLearner:
    made = MetaLearner(config)
    made.prepare(Setting(num_experts=num_experts))
    return made


def expert_of(one: MetaLearner, client: int) -> int | None:
    part = one.guidance(client).parts.get("expert")
    return None if part is None else int(part)


def test_each_client_of_a_mixture_is_told_its_cluster_s_expert() -> None:
    one = learner(ASSIGN, num_experts=4)
    one.observe(1, insights(clients_of([0, 1, 0, 2, 1]), range(5)))
    assert [expert_of(one, k) for k in range(6)] == [1, 2, 1, 3, 2, None]
    found = one.clusters(np.array([4, 3, 9, 0, -1]))
    assert found is not None and found.tolist() == [1, 2, -1, 0, -1]
    decided = one.history[-1]["decisions"]["expert_assignment"]
    assert (decided["clients"], decided["clusters"], decided["sizes"]) == (5, 3, [2, 2, 1])
    assert decided["log_odds_of_fewer"] < 0
    before = one.guidance(2)
    one.observe(2, insights(clients_of([0, 1, 0, 2, 1]), range(5), round=2))
    assert one.guidance(2).parts["expert"] is before.parts["expert"]  # so it is not told again


def test_there_are_no_more_clusters_than_experts() -> None:
    one = learner(ASSIGN, num_experts=2)
    one.observe(1, insights(clients_of([0, 1, 0, 2, 1]), range(5)))
    assert {expert_of(one, k) for k in range(5)} == {1, 2}


def test_like_clients_and_other_models_are_told_nothing() -> None:
    alike = learner(ASSIGN, num_experts=4)
    alike.observe(1, insights(clients_of([0, 0, 0]), range(3)))
    assert expert_of(alike, 0) is None and alike.clusters(np.arange(3)) is None
    plain = learner(ASSIGN)
    plain.observe(1, insights(clients_of([0, 1, 0]), range(3)))
    assert expert_of(plain, 0) is None
    assert plain.clusters(np.arange(3)) is not None  # found, for the record


def test_an_expert_stays_with_its_clients_when_others_join() -> None:
    told = clients_of([3, 0, 1, 0, 2, 1])
    one = learner(ASSIGN, num_experts=4)
    one.observe(1, insights(told, [2, 3, 5]))  # rules 1 and 0: experts 1 and 2
    first = [expert_of(one, k) for k in (2, 3, 5)]
    assert first == [1, 2, 1]
    arrays, values = one.state()
    resumed = learner(ASSIGN, num_experts=4)
    resumed.restore(arrays, json.loads(json.dumps(values)))
    for each in (one, resumed):
        each.observe(2, insights(told, [0, 1, 4], round=2))
        assert [expert_of(each, k) for k in (2, 3, 5, 1)] == [1, 2, 1, 2]
        assert sorted(str(expert_of(each, k)) for k in (0, 4)) == ["3", "4"]
    assert [expert_of(one, k) for k in range(6)] == [expert_of(resumed, k) for k in range(6)]


def means(told: Told, clients: Sequence[int]) -> NDArray[np.float64]:
    count, total, _ = told
    out = np.zeros(total.shape[1:])
    for c in range(len(out)):
        samples = sum(count[k, c] for k in clients)
        for k in clients:
            out[c] += total[k, c] / max(samples, 1)
    return out


@pytest.mark.parametrize("config", [OWN, ALL], ids=["own", "all"])
def test_prototypes_are_those_of_the_client_s_own_cluster(config: MetaLearnerConfig) -> None:
    rules = [0, 1, 0, 1, 1]
    told = clients_of(rules)
    told[0][:2, 3] = told[1][:2, 3] = told[2][:2, 3] = 0  # and 2 alone has class 3 of its rule
    told[0][2, 3] = told[1][2, 3] = told[2][2, 3] = 0
    one = learner(config)
    one.observe(1, insights(told, range(5)))
    for k, rule in enumerate(rules):
        like = [j for j in range(5) if config is ALL or rules[j] == rule]
        parts = one.guidance(k).parts
        np.testing.assert_allclose(parts["prototypes"], means(told, like), rtol=1e-5, atol=1e-6)
        known = told[0][like].sum(axis=0) > 0
        np.testing.assert_allclose(parts["prototype_weight"], 2 * known / known.sum(), rtol=1e-6)
    assert bool(one.guidance(7).parts) == (config is ALL)  # who has told nothing
    payloads = ("prototypes", "traces") if config is OWN else ("prototypes",)
    assert one.reads == payloads


# ------------------------------------------------------------------------- by sketches


SKETCHED = MetaLearnerConfig(expert_assignment=ExpertAssignmentPolicyConfig(by="sketches"))


def sketched(rules: Sequence[int], round: int, noise: float = 0.3) -> list[Insight]:
    """What clients say of their updates; a rule below 0 is nobody else's."""
    told = clients_of([0] * len(rules))
    rng = np.random.default_rng(round)
    ways = np.random.default_rng(0).standard_normal((9, 32))
    made = insights(told, range(len(rules)), round)
    for client, rule in enumerate(rules):
        way = ways[rule] + noise * rng.standard_normal(32)
        sketch = (way / np.linalg.norm(way)).astype(np.float32)
        made[client].payload.clear()  # type: ignore[attr-defined]
        made[client].payload["gradient_sketch"] = sketch  # type: ignore[index]
    return made


def test_sketches_of_updates_tell_groups_apart_once() -> None:
    rules = [0, 1, 2, 0, 1, 2, 0, 1, 2]
    one = learner(SKETCHED, num_experts=4)
    assert one.reads == ("gradient_sketch",)
    one.observe(1, sketched([0] * 9, 1, noise=1.0))
    assert one.clusters(np.arange(9)) is None
    assert one.history[-1]["decisions"]["expert_assignment"]["silhouette"] < 0.35
    one.observe(2, sketched(rules, 2))
    assert [expert_of(one, k) for k in range(9)] == [1 + rule for rule in rules]
    arrays, values = one.state()
    resumed = learner(SKETCHED, num_experts=4)
    resumed.restore(arrays, json.loads(json.dumps(values)))
    for each in (one, resumed):  # updates of other experts say nothing of the rules
        each.observe(3, sketched(rules[::-1], 3))
        assert [expert_of(each, k) for k in range(9)] == [1 + rule for rule in rules]


def test_more_groups_than_experts_share_and_a_small_cluster_gets_none() -> None:
    one = learner(SKETCHED, num_experts=2)
    one.observe(1, sketched([0, 1, 2] * 4, 1))
    assert {expert_of(one, k) for k in range(12)} == {1, 2}
    many = [0, 1] * 10 + [5, 5]
    other = learner(SKETCHED, num_experts=2)
    other.observe(1, sketched(many, 1))
    assert [expert_of(other, k) for k in range(22)] == [1, 2] * 10 + [None, None]
    assert other.policies[0].suspects.keys() == {20, 21}
