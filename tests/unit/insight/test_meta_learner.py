"""The MetaLearner: prototypes against a loop over samples, summaries, and what it passes on."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_insight_record import GOOD, TASK

from fedmoe.config import load_config
from fedmoe.insight import Guidance, Insight, Memory, MetaLearner, RoundInsights
from fedmoe.insight.meta_learner import aggregate, precision_weighted
from fedmoe.insight.policies.prototypes import Prototypes
from fedmoe.schema import MetaLearnerConfig, PriorPolicyConfig, PrototypesPolicyConfig

PROTOTYPES = MetaLearnerConfig(prototypes=PrototypesPolicyConfig(strength=2.0, of="federation"))
BOTH = replace(PROTOTYPES, prior=PriorPolicyConfig())


def told(sums: NDArray[Any], count: list[float], **fields: Any) -> Insight:
    payload = {
        "prototype_sum": sums.astype(np.float32),
        "prototype_count": np.array(count, np.float32),
    }
    return replace(GOOD, payload=payload, **fields)


def test_prototypes_are_means_over_all_samples_not_over_clients() -> None:
    rng = np.random.default_rng(0)
    samples = {0: rng.normal(size=(9, 3)), 1: rng.normal(size=(2, 3))}
    memory = Memory(max_rounds=3)
    memory.add(
        told(np.stack([x.sum(axis=0), np.zeros(3)]), [len(x), 0.0], client_id=client)
        for client, x in samples.items()
    )
    policy = Prototypes(PrototypesPolicyConfig(strength=2.0, of="federation"))
    policy.learn(memory, 1)
    parts = policy.advise(0).parts
    everyone = np.concatenate(list(samples.values()))
    np.testing.assert_allclose(parts["prototypes"][0], everyone.mean(axis=0), rtol=1e-5)
    # Class 1 is known to nobody: no prototype, no weight; all the strength is class 0's.
    np.testing.assert_array_equal(parts["prototypes"][1], 0.0)
    np.testing.assert_allclose(parts["prototype_weight"], [2.0, 0.0])
    assert policy.decisions == {"clients": 2, "clusters": 1, "classes": [1], "capped": []}


def test_policies_are_switched_by_the_configuration() -> None:
    both, none = MetaLearner(BOTH, Memory(3)), MetaLearner(MetaLearnerConfig(), Memory(3))
    for learner in (both, none):
        learner.observe(1, [GOOD, replace(GOOD, client_id=1)])
    assert set(both.guidance(0).parts) == {"prototypes", "prototype_weight"}
    assert both.reads == ("statistics", "prototypes")
    assert none.guidance(0) == Guidance()
    assert none.reads == ()


def test_by_default_it_is_what_the_default_configuration_makes() -> None:
    """The mathematics knows no YAML, so that its defaults are written twice."""
    default = load_config(["strategy=insight"])
    learner = MetaLearner()
    assert learner.config == default.meta_learner
    assert learner.memory.max_rounds == default.insight.memory_rounds
    assert learner.memory.max_bytes == default.insight.memory_bytes
    assert len(learner.memory) == 0


def test_guidance_changes_with_what_is_observed() -> None:
    learner = MetaLearner(PROTOTYPES, Memory(3))
    assert learner.guidance(4).parts == {}
    learner.observe(1, [GOOD])
    before = learner.guidance(4).parts["prototypes"].copy()
    learner.observe(2, [told(3 * GOOD.payload["prototype_sum"], [4, 6], round=2)])
    np.testing.assert_allclose(learner.guidance(4).parts["prototypes"], before * 3)


@pytest.mark.parametrize("again", [True, False], ids=["told again", "not told again"])
def test_what_does_not_change_stays_the_same_object(again: bool) -> None:
    learner = MetaLearner(PROTOTYPES, Memory(3))
    learner.observe(1, [GOOD])
    before = learner.guidance(4).parts
    # Twice the sum of twice the samples: the same means, but of one class only.
    payload = GOOD.payload if again else {}
    learner.observe(2, [replace(GOOD, round=2, payload=payload)])
    after = learner.guidance(4).parts
    assert all(after[name] is before[name] for name in ("prototypes", "prototype_weight"))
    learner.observe(3, [told(GOOD.payload["prototype_sum"] * 2, [4, 6], round=3)])
    changed = learner.guidance(4).parts
    assert changed["prototypes"] is not before["prototypes"]
    assert changed["prototype_weight"] is before["prototype_weight"]


def test_clients_that_are_told_the_same_share_the_object() -> None:
    learner = MetaLearner(PROTOTYPES, Memory(3))
    learner.observe(1, [GOOD])
    assert learner.guidance(4) is learner.guidance(5)


def test_restored_learner_gives_the_same_guidance() -> None:
    learner = MetaLearner(PROTOTYPES, Memory(3))
    learner.observe(1, [GOOD])
    other = MetaLearner(PROTOTYPES, Memory(3))
    other.observe(1, [told(GOOD.payload["prototype_sum"] * 2, [4, 6])])  # is to be forgotten
    other.restore(*learner.state())
    assert other.history == learner.history
    assert_same(learner.guidance(4).parts, other.guidance(4).parts)
    for one in (learner, other):
        one.observe(2, [replace(GOOD, client_id=7, round=2)])
    assert other.history == learner.history
    assert_same(learner.guidance(4).parts, other.guidance(4).parts)


def assert_same(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        np.testing.assert_array_equal(array, theirs[name])


def test_summaries_are_as_many_as_the_memory_has_rounds() -> None:
    for rounds in (1, 2):
        learner = MetaLearner(PROTOTYPES, Memory(max_rounds=rounds))
        for number in (1, 2, 3):
            learner.observe(number, [replace(GOOD, round=number)])
        assert [one["round"] for one in learner.history] == [1, 2, 3][-rounds:]
        assert learner.history[-1]["memory"]["insights"] == rounds
        assert learner.history[-1]["memory"]["dropped"]["rounds"] == 3 - rounds


def test_summary_splits_clients_by_uncertainty() -> None:
    insights = [replace(GOOD, client_id=c, uncertainty=u) for c, u in enumerate([0.1, 0.2, 0.9])]
    summary = aggregate(RoundInsights.of(insights))
    assert summary["insights"] == 3
    assert summary["mean"]["uncertainty"] == pytest.approx(0.4)
    assert summary["std"]["uncertainty"] == pytest.approx(np.std([0.1, 0.2, 0.9]))
    assert summary["mean"]["calibration_error"] == pytest.approx(0.1)
    assert (summary["high_uncertainty"], summary["low_uncertainty"]) == ([2], [0, 1])
    assert aggregate(RoundInsights.of([])) == {"insights": 0}


def weighted_loss(*clients: tuple[int, float, float]) -> float | None:
    """Of clients with so many samples held out, such an uncertainty and loss."""
    names = ("validation_examples", "uncertainty", "validation_loss")
    return precision_weighted(
        dict(zip(names, map(np.array, zip(*clients, strict=True)), strict=True))
    )["validation_loss"]


def test_the_precision_weighted_loss_is_that_of_a_loop() -> None:
    clients = [(4, 0.5, 1.0), (9, 0.8, 2.0), (30, 1.5, 3.0), (0, 0.7, 99.0)]
    total = weight = 0.0
    for count, deviation, loss in clients:
        total += count / deviation**2 * loss
        weight += count / deviation**2
    assert weighted_loss(*clients) == pytest.approx(total / weight)


def test_nobodys_certainty_drowns_the_others() -> None:
    clients = [(5, 0.5, 1.0), (5, 0.5, 1.0), (5, 0.0, 3.0)]
    # As if it were 0.05, a tenth of the median: a weight of 100 to 1 each.
    assert weighted_loss(*clients) == pytest.approx((1 + 1 + 300) / 102)
    assert weighted_loss((2, 0.0, 1.0), (6, 0.0, 3.0)) == pytest.approx((2 + 18) / 8)
    assert weighted_loss((0, 0.5, 1.0)) is None


def test_guidance_that_does_not_fit_is_refused() -> None:
    fitting = {"prototypes": np.ones((2, 3)), "prior_mean": np.ones((4, 2))}
    Guidance(fitting).check(TASK, load_config().insight)
    for parts, reason in (
        ({"model": np.ones(3)}, r"unknown parts: \['model'\]"),
        ({"prior_mean": np.ones((4, 1))}, r"prior_mean has shape \(4, 1\), expected \(4, 2\)"),
        ({"prior_mean": np.full((4, 2), np.nan)}, "prior_mean is not finite"),
    ):
        with pytest.raises(ValueError, match=reason):
            Guidance(parts).check(TASK, load_config().insight)
    with pytest.raises(ValueError, match=r"unknown parts: \['luck'\]"):
        Guidance({}, {"luck": 1.0}).check(TASK, load_config().insight)
