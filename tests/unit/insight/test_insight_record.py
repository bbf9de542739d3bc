"""The insight record refuses what no honest client could send."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmoe.config import load_config
from fedmoe.data.federation import Task
from fedmoe.insight import Insight
from fedmoe.insight.insight import SCALARS, from_fields
from fedmoe.insight.payloads import Facts, Payloads

TASK = Task(kind="classification", num_features=3, num_outputs=2, class_names=("a", "b"))
_CONFIG = load_config(["insight.clip=3"])
PAYLOADS = Payloads(Facts(TASK, _CONFIG.model, _CONFIG.insight, num_experts=None, seed=0))
GOOD = Insight(
    client_id=4,
    round=2,
    num_examples=10,
    epochs_trained=1,
    steps=2,
    guidance_parts=0,
    final_loss=0.5,
    loss_improvement=-0.1,
    mean_grad=1.0,
    std_grad=0.2,
    distance=0.7,
    validation_examples=3,
    validation_loss=0.6,
    uncertainty=0.3,
    volatility=0.2,
    calibration_error=0.1,
    payload={
        "prototype_sum": np.ones((2, 3), np.float32),
        "prototype_count": np.array([4.0, 6.0], np.float32),
    },
)


PROTOTYPES = "payload prototypes cannot be that of 10 samples under insight.min_count"


def floats(value: float) -> NDArray[np.float32]:
    return np.full((2, 3), value, np.float32)


def counts(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def changed(**fields: Any) -> Insight:
    return replace(GOOD, **fields)


def test_an_honest_insight_passes() -> None:
    GOOD.check(PAYLOADS)


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e13, -1e13])
def test_numbers_must_be_finite_and_sane(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"insight {name}="):
        changed(**{name: value}).check(PAYLOADS)


@pytest.mark.parametrize(
    "name",
    [name for name in SCALARS if "loss" not in name],
)
def test_counts_and_norms_must_not_be_negative(name: str) -> None:
    with pytest.raises(ValueError, match=f"insight {name}=-1: must not be negative"):
        changed(**{name: -1}).check(PAYLOADS)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"prototype_sum": np.ones((2, 4))}, "prototype_sum has shape"),
        ({"prototype_sum": np.ones((3, 2))}, "prototype_sum has shape"),
        ({"prototype_count": np.ones(3)}, "prototype_count has shape"),
        ({"weights": np.ones((2, 3))}, "weights has shape"),
        ({"statistics_xx": np.ones((3, 3))}, r"statistics_xx has shape \(3, 3\), expected"),
        ({"prototype_sum": np.ones((2, 3))}, "prototype_sum is float64, expected float32"),
        ({"prototype_sum": floats(np.nan)}, "prototype_sum is not finite"),
        ({"prototype_sum": floats(1e13)}, "prototype_sum is not finite"),
        ({"prototype_sum": floats(1.0), "prototype_count": counts(-2, 2)}, PROTOTYPES),
        ({"prototype_sum": floats(1.0), "prototype_count": counts(6, 5)}, PROTOTYPES),  # of 10
        ({"prototype_sum": floats(1.0), "prototype_count": counts(1, 9)}, PROTOTYPES),  # min_count
        ({"prototype_sum": floats(1.0), "prototype_count": counts(0, 9)}, PROTOTYPES),  # of nothing
        ({"prototype_sum": floats(8.0), "prototype_count": counts(4, 4)}, PROTOTYPES),  # clip
        ({"prototype_sum": floats(1.0)}, PROTOTYPES),  # in parts
    ],
)
def test_payloads_must_fit_the_task(payload: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GOOD, payload=payload).check(PAYLOADS)
    stacked = {name: np.stack([array, array]) for name, array in payload.items()}
    assert PAYLOADS.implausible(stacked, np.array([10, 10])).all()


def test_what_is_just_allowed_passes() -> None:
    longest = floats(0.0)
    longest[:, 0] = 3 * 5  # five inputs of norm 3 each
    payload = {"prototype_sum": longest, "prototype_count": counts(5, 5)}
    replace(GOOD, payload=payload).check(PAYLOADS)
    stacked = {name: array[None] for name, array in payload.items()}
    assert not PAYLOADS.implausible(stacked, np.array([10])).any()


def test_one_bad_client_does_not_spoil_the_others() -> None:
    sums, count = np.ones((3, 2, 3), np.float32), np.full((3, 2), 4, np.float32)
    sums[1, 0, 0] = np.nan
    found = PAYLOADS.implausible({"prototype_sum": sums, "prototype_count": count}, np.full(3, 10))
    assert found.tolist() == [False, True, False]


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
