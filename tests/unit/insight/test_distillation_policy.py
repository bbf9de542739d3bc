"""Soft labels, against loops over clients, inputs and classes; who is told, and when."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_clusters import clients_of

from fedmoe.insight import Insight, MetaLearner
from fedmoe.insight.insight import SCALARS, WHOLE
from fedmoe.schema import DistillationPolicyConfig, MetaLearnerConfig

K, S, O = 5, 4, 3  # noqa: E741
GROUPED = ("prototype_count", "prototype_sum", "class_trace")


def learner(of: Any = "federation", temperature: float = 0.7) -> MetaLearner:
    config = DistillationPolicyConfig(strength=1.5, samples=2, temperature=temperature, of=of)
    return MetaLearner(MetaLearnerConfig(distillation=config))


def answers(seed: int = 0) -> NDArray[np.float32]:
    """Log-probabilities (K, S, O); client 0 never says class 2, and nobody is even."""
    said = np.random.default_rng(seed).normal(size=(K, S, O)) * 2
    said[0, :, 2] = -30
    said -= np.log(np.exp(said).sum(axis=2, keepdims=True))
    return said.astype(np.float32)


def insights(
    said: NDArray[np.float32], round: int = 1, groups: Sequence[int] = ()
) -> list[Insight]:
    numbers: dict[str, Any] = {n: 1 if n in WHOLE else 0.5 for n in SCALARS}
    told = zip(GROUPED, clients_of(list(groups)) if groups else (), strict=False)
    kept = [(name, array.astype(np.float32)) for name, array in told]
    return [
        Insight(
            **numbers | {"client_id": k, "round": round, "num_examples": 20},
            payload={"logits": row, **{name: array[k] for name, array in kept}},
        )
        for k, row in enumerate(said)
    ]


def labels(said: NDArray[np.float32], clients: Sequence[int], power: float) -> list[list[float]]:
    """The formula of the policy's docstring, in plain numbers."""
    probs = [[[float(np.exp(float(z))) for z in row] for row in said[k]] for k in clients]
    found = []
    for s in range(len(said[0])):
        mean = []
        for o in range(O):
            above = below = 0.0
            for own in probs:
                weight = min(1.0, O * sum(row[o] for row in own) / len(own))
                above, below = above + weight * own[s][o], below + weight
            mean.append(above / below)
        total = sum(one ** (1 / power) for one in mean)
        found.append([one ** (1 / power) / total for one in mean])
    return found


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_labels_are_a_loop_over_clients_inputs_and_classes(temperature: float) -> None:
    one, said = learner(temperature=temperature), answers()
    assert one.reads == ("logits",)
    one.observe(1, insights(said))
    for client in (0, 3, 77, -1):  # who is new is told as well
        parts = one.guidance(client).parts
        expected = labels(said, range(K), temperature)
        np.testing.assert_allclose(parts["soft_labels"], expected, rtol=1e-5)
        assert float(parts["soft_weight"]) == 1.5
    decided = one.history[-1]["decisions"]["distillation"]
    assert decided["clients"] == K and decided["clusters"] == [K]
    largest = np.array(labels(said, range(K), temperature)).max(axis=1).mean()
    assert decided["certainty"] == [pytest.approx(largest, rel=1e-5)]


def test_each_cluster_has_its_own_and_a_client_alone_has_none() -> None:
    groups, said = [0, 1, 0, 1, 2], answers()
    one = learner("cluster")
    assert one.reads == ("logits", "prototypes", "traces")
    one.observe(1, insights(said, groups=groups))
    for client, group in enumerate(groups[:4]):
        own = [k for k in range(K) if groups[k] == group]
        parts = one.guidance(client).parts
        np.testing.assert_allclose(parts["soft_labels"], labels(said, own, 0.7), rtol=1e-5)
    assert not one.guidance(4).parts and not one.guidance(9).parts


def test_labels_change_with_answers_only() -> None:
    one = learner()
    assert not one.guidance(0).parts
    one.observe(1, insights(answers()))
    first = one.guidance(0).parts
    numbers = [Insight(**{n: getattr(i, n) for n in SCALARS}) for i in insights(answers(), 2)]
    one.observe(2, numbers)
    assert one.guidance(0).parts["soft_labels"] is first["soft_labels"]
    one.observe(3, insights(answers(1), 3))
    second = one.guidance(0).parts
    assert (second["soft_labels"] != first["soft_labels"]).any()
    assert second["soft_weight"] is first["soft_weight"]  # so it is not told again
    arrays, values = one.state()
    resumed = learner()
    resumed.restore(arrays, json.loads(json.dumps(values)))
    for name, part in second.items():
        np.testing.assert_array_equal(resumed.guidance(0).parts[name], part)


def test_who_tells_zeros_is_left_out_and_who_is_sure_of_itself_counts_once() -> None:
    said = answers()
    said[2] = 0  # too few samples
    one = learner(temperature=1.0)
    one.observe(1, insights(said))
    others = [0, 1, 3, 4]
    expected = labels(said, others, 1.0)
    np.testing.assert_allclose(one.guidance(2).parts["soft_labels"], expected, rtol=1e-5)


def test_liars_weigh_no_more_than_as_many_clients_that_have_the_class() -> None:
    """Eight agree on the class of each input; two always say the first."""
    clients, inputs = 10, 9
    said = np.full((clients, inputs, O), np.log(0.01), dtype=np.float32)
    said[:, np.arange(inputs), np.arange(inputs) % O] = np.log(0.98)
    said[:2] = np.array([0.0, -40.0, -40.0])
    one = learner(temperature=1.0)
    one.observe(1, insights(said))
    found = one.guidance(0).parts["soft_labels"]
    np.testing.assert_array_equal(found.argmax(axis=1), np.arange(inputs) % O)
    assert found[np.arange(inputs) % O != 0, 0].max() < 0.2


def test_a_class_that_nobody_can_say_has_no_probability() -> None:
    said = np.full((2, S, O), -2000.0, dtype=np.float32)
    said[:, :, 1] = 0
    one = learner()
    one.observe(1, insights(said))
    np.testing.assert_array_equal(one.guidance(0).parts["soft_labels"], [[0, 1, 0]] * S)
