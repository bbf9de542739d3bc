"""The MetaLearner: prototypes against a loop over samples, summaries, and what it passes on."""

from dataclasses import replace

import numpy as np
import pytest
from test_insight_record import GOOD

from fedmoe.config import load_config
from fedmoe.insight import Guidance, Memory, MetaLearner
from fedmoe.insight.meta_learner import aggregate
from fedmoe.insight.policies import prototypes
from fedmoe.schema import InsightConfig, MetaLearnerConfig


def config(*policies: str, strength: float = 2.0) -> MetaLearnerConfig:
    return MetaLearnerConfig(policies=policies, prototype_strength=strength)  # type: ignore[arg-type]


def test_prototypes_are_means_over_all_samples_not_over_clients() -> None:
    rng = np.random.default_rng(0)
    samples = {0: rng.normal(size=(9, 3)), 1: rng.normal(size=(2, 3))}
    memory = Memory(max_rounds=3)
    memory.add(
        replace(
            GOOD,
            client_id=client,
            payload={
                "prototype_sum": np.stack([x.sum(axis=0), np.zeros(3)]).astype(np.float32),
                "prototype_count": np.array([len(x), 0.0], np.float32),
            },
        )
        for client, x in samples.items()
    )
    guidance = prototypes.apply(memory, config("prototypes"), Guidance())
    assert guidance.prototypes is not None and guidance.prototype_weight is not None
    everyone = np.concatenate(list(samples.values()))
    np.testing.assert_allclose(guidance.prototypes[0], everyone.mean(axis=0), rtol=1e-5)
    # Class 1 is known to nobody: no prototype, no weight; all the strength is class 0's.
    np.testing.assert_array_equal(guidance.prototypes[1], 0.0)
    np.testing.assert_allclose(guidance.prototype_weight, [2.0, 0.0])


def test_policies_are_switched_by_the_configuration() -> None:
    both = MetaLearner(config("prior", "prototypes"), Memory(3))
    none = MetaLearner(config(), Memory(3))
    for learner in (both, none):
        learner.observe(1, [GOOD, replace(GOOD, client_id=1)])
    assert set(both.guidance(0).arrays()) == {"prototypes", "prototype_weight"}
    assert none.guidance(0).arrays() == {}


def test_by_default_it_is_what_the_default_configuration_makes() -> None:
    """The mathematics knows no YAML, so that its defaults are written twice."""
    default = load_config(["strategy=insight"])
    assert isinstance(default.strategy, InsightConfig)
    learner = MetaLearner()
    assert learner.config == default.meta_learner
    assert learner.memory.max_rounds == default.strategy.memory_rounds
    assert len(learner.memory) == 0


def test_guidance_changes_with_what_is_observed() -> None:
    learner = MetaLearner(config("prototypes"), Memory(3))
    assert learner.guidance(4).arrays() == {}
    learner.observe(1, [GOOD])
    before = learner.guidance(4).arrays()["prototypes"]
    changed = {**GOOD.payload, "prototype_sum": GOOD.payload["prototype_sum"] * 3}
    learner.observe(2, [replace(GOOD, round=2, payload=changed)])
    np.testing.assert_allclose(learner.guidance(4).arrays()["prototypes"], before * 3)


def test_restored_learner_gives_the_same_guidance() -> None:
    learner = MetaLearner(config("prototypes"), Memory(3))
    learner.observe(1, [GOOD])
    memory = Memory(3)
    memory.restore(*learner.memory.state())
    other = MetaLearner(config("prototypes"), memory)
    other.restore(list(learner.history))
    assert other.history == learner.history
    for name, array in learner.guidance(4).arrays().items():
        np.testing.assert_array_equal(other.guidance(4).arrays()[name], array)


def test_summary_splits_clients_by_uncertainty() -> None:
    insights = [replace(GOOD, client_id=c, uncertainty=u) for c, u in enumerate([0.1, 0.2, 0.9])]
    summary = aggregate(insights)
    assert summary["insights"] == 3
    assert summary["mean"]["uncertainty"] == pytest.approx(0.4)
    assert summary["std"]["uncertainty"] == pytest.approx(np.std([0.1, 0.2, 0.9]))
    assert (summary["high_uncertainty"], summary["low_uncertainty"]) == ([2], [0, 1])
    assert aggregate([]) == {"insights": 0}


def test_guidance_survives_the_wire_and_refuses_nonsense() -> None:
    given = Guidance(
        prior_mean=np.ones((3, 1), np.float32),
        prior_ratio=0.5,
        prototypes=np.ones((2, 3), np.float32),
        prototype_weight=np.array([1.0, 0.0], np.float32),
    )
    received = Guidance.from_arrays(given.arrays())
    assert received.prior_ratio == 0.5
    assert received.arrays().keys() == given.arrays().keys()
    with pytest.raises(ValueError, match="unknown parts"):
        Guidance.from_arrays({"model": np.ones(3)})
    with pytest.raises(ValueError, match="not finite"):
        Guidance.from_arrays({"prior_mean": np.array([[np.nan]])})
