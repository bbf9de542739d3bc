"""The insight record refuses what no honest client could send."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedmoe.data.federation import Task
from fedmoe.insight import Insight
from fedmoe.insight.insight import SCALARS, from_fields

TASK = Task(kind="classification", num_features=3, num_outputs=2, class_names=("a", "b"))
GOOD = Insight(
    client_id=4,
    round=2,
    num_examples=10,
    epochs_trained=1,
    final_loss=0.5,
    loss_improvement=-0.1,
    mean_grad=1.0,
    std_grad=0.2,
    uncertainty=0.3,
    volatility=0.2,
    payload={
        "prototype_sum": np.ones((2, 3), np.float32),
        "prototype_count": np.array([4.0, 6.0], np.float32),
    },
)


def changed(**fields: Any) -> Insight:
    return replace(GOOD, **fields)


def test_an_honest_insight_passes() -> None:
    GOOD.check(TASK)


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e13, -1e13])
def test_numbers_must_be_finite_and_sane(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"insight {name}="):
        changed(**{name: value}).check(TASK)


@pytest.mark.parametrize(
    "name", ["client_id", "round", "num_examples", "mean_grad", "std_grad", "uncertainty"]
)
def test_counts_and_norms_must_not_be_negative(name: str) -> None:
    with pytest.raises(ValueError, match=f"insight {name}=-1: must not be negative"):
        changed(**{name: -1}).check(TASK)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"prototype_sum": np.ones((2, 4))}, "prototype_sum has shape"),
        ({"prototype_sum": np.ones((3, 2))}, "prototype_sum has shape"),
        ({"prototype_count": np.ones(3)}, "prototype_count has shape"),
        ({"weights": np.ones((2, 3))}, "weights has shape"),
        ({"statistics_xx": np.ones((3, 3))}, r"statistics_xx has shape \(3, 3\), expected"),
        ({"prototype_sum": np.full((2, 3), np.nan)}, "prototype_sum is not finite"),
        ({"prototype_sum": np.full((2, 3), 1e13)}, "prototype_sum is not finite"),
        ({"prototype_count": np.array([-1.0, 2.0])}, "prototype_count sums to"),
        ({"prototype_count": np.array([6.0, 5.0])}, "prototype_count sums to 11"),
    ],
)
def test_payloads_must_fit_the_task(payload: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GOOD, payload=payload).check(TASK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final_loss": None}, "missing"),
        ({"weights": 3.0}, "unknown"),
        ({"final_loss": [1.0]}, "must be a number"),
        ({"client_id": 1.5}, "must be a whole number"),
    ],
)
def test_malformed_fields_are_refused(change: dict[str, Any], message: str) -> None:
    fields = {**GOOD.scalars(), **change}
    fields = {name: value for name, value in fields.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        from_fields(fields, {})


def test_fields_survive_the_round_trip() -> None:
    assert from_fields(GOOD.scalars(), {}) == replace(GOOD, payload={})
    assert GOOD.as_json()["payload_bytes"] == {"prototype_sum": 24, "prototype_count": 8}
