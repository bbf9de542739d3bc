import numpy as np
import pytest
from flwr.app import Message, MessageType, MetricRecord, RecordDict

from fedmoe.messages import words
from fedmoe.messages.seams import ensure_task_identity
from fedmoe.scores import federation_scores, objective


def replies(*metrics: dict[str, int | float]) -> list[Message]:
    ensure_task_identity()
    return [
        Message(
            RecordDict({words.METRICS: MetricRecord(dict(own))}),
            reply_to=Message(RecordDict(), node, MessageType.EVALUATE),
        )
        for node, own in enumerate(metrics, start=2)
    ]


def score(validation: float, test: float, count: int = 10) -> dict[str, int | float]:
    return {
        "num-examples": 999,  # not what scores are weighted by
        "validation-num-examples": 2 * count,
        "test-num-examples": count,
        "validation-global-accuracy": validation,
        "test-global-accuracy": test,
        "validation-global-loss": 1 - validation,
        "test-global-loss": 1 - test,
    }


def test_scores_are_weighted_by_the_parts_own_examples() -> None:
    values, counts = [0.9, 0.1, 0.5, 0.3], [1, 5, 2, 8]
    given = replies(*(score(v / 2, v, n) for v, n in zip(values, counts, strict=True)))
    for part, scale in (("test", 1.0), ("validation", 0.5)):
        scores = federation_scores(given, part)
        assert scores["personalised"] is None
        accuracy, loss = scores["global"]["accuracy"], scores["global"]["loss"]
        mean = sum(scale * v * n for v, n in zip(values, counts, strict=True)) / sum(counts)
        assert accuracy["mean"] == pytest.approx(mean)
        assert loss["mean"] == pytest.approx(1 - mean)
        assert accuracy["worst_decile"] == pytest.approx(scale * 0.1)  # the lowest
        assert loss["worst_decile"] == pytest.approx(1 - scale * 0.1)  # the highest
        deviation = np.sqrt(np.average((scale * np.array(values) - mean) ** 2, weights=counts))
        assert accuracy["std"] == pytest.approx(deviation)
        assert set(scores["global"]) == {"accuracy", "loss"}


def test_global_and_personalised_are_told_apart() -> None:
    own: dict[str, int | float] = {"test-num-examples": 4, "test-personalised-mse": 0.25}
    scores = federation_scores(replies(own, {**own, "test-personalised-mse": 0.75}), "test")
    assert scores["global"] is None
    assert set(scores["personalised"]) == {"mse"}
    assert scores["personalised"]["mse"]["mean"] == pytest.approx(0.5)
    assert scores["personalised"]["mse"]["worst_decile"] == 0.75


def test_what_not_every_client_scored_is_left_out() -> None:
    lacking = score(0.5, 0.5)
    del lacking["test-global-accuracy"]
    scores = federation_scores(replies(score(0.1, 0.2), lacking), "test")
    assert set(scores["global"]) == {"loss"}


@pytest.mark.parametrize("given", [[], replies(score(0.5, 0.5, count=0)), replies({"x": 1.0})])
def test_nothing_was_scored(given: list[Message]) -> None:
    scores = federation_scores(given, "test")
    assert scores == {"global": None, "personalised": None}
    assert objective(scores) is None


def test_clients_without_examples_do_not_count() -> None:
    scores = federation_scores(replies(score(0, 0.5, 4), score(0, 0.0, 0)), "test")
    assert scores["global"]["accuracy"] == {"mean": 0.5, "worst_decile": 0.5, "std": 0.0}


def test_the_objective_prefers_personalised_models_and_accuracy() -> None:
    accuracy, mse, loss = {"mean": 0.7}, {"mean": 3.0}, {"mean": 9.0}
    assert objective({"global": {"accuracy": {"mean": 0.1}}, "personalised": {"mse": mse}}) == (
        3.0,
        False,
    )
    assert objective({"global": {"loss": loss, "accuracy": accuracy}, "personalised": None}) == (
        0.7,
        True,
    )
    assert objective(None) is None
