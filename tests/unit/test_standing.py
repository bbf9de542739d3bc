import dataclasses
import json
from typing import Any

import pytest
from flwr.app import ArrayRecord

from fedmoe.schema import StoppingConfig
from fedmoe.standing import Standing

NEVER = StoppingConfig(patience=None, min_delta=0.0, target=None)


def scores(name: str, mean: float) -> dict[str, Any]:
    return {"global": {name: {"mean": mean}}, "personalised": None}


def line(number: int, validation: Any, test: Any) -> dict[str, Any]:
    traffic = {"up": 3, "down": 5}
    scored = {"validation": validation, "test": test}
    return {"round": number, "bytes": traffic, "seconds": 0.5, **scored}


def after(name: str, *validation: float | None, min_delta: float = 0.0) -> Standing:
    """A run whose test scores are 100 minus its validation scores."""
    standing = Standing(ArrayRecord())
    for number, value in enumerate(validation, start=1):
        judged = None if value is None else scores(name, value)
        test = None if value is None else scores(name, 100 - value)
        standing.finish_round(line(number, judged, test), min_delta)
    return standing


def test_totals() -> None:
    standing = after("accuracy", 0.5, None, 0.6)
    assert (standing.round, standing.bytes_up, standing.bytes_down) == (3, 9, 15)
    assert standing.seconds == 1.5
    assert standing.final == scores("accuracy", 100 - 0.6)


def test_a_round_without_evaluation_changes_no_judgement() -> None:
    assert dataclasses.replace(after("mse", 2.0, None), round=1, bytes_up=3, bytes_down=5) == (
        dataclasses.replace(after("mse", 2.0), seconds=1.0)
    )


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [("accuracy", (0.5, 0.9, 0.7, 0.9), 2), ("mse", (0.5, 0.9, 0.2, 0.2, 0.3), 3)],
)
def test_the_best_round_is_the_first_best_on_validation(
    name: str, values: tuple[float, ...], best: int
) -> None:
    standing = after(name, *values)
    value = values[best - 1]
    assert standing.best == {**scores(name, 100 - value), "round": best}
    assert standing.best_objective == value
    assert standing.last_objective == values[-1]


def test_without_validation_data_there_is_no_best_round() -> None:
    standing = Standing(ArrayRecord())
    standing.finish_round(
        line(1, scores("accuracy", 0.1) | {"global": None}, scores("mse", 1)), 0.0
    )
    assert (standing.final, standing.best) == (scores("mse", 1), None)
    assert standing.stale == 0


@pytest.mark.parametrize(
    ("name", "target", "values", "stops"),
    [
        ("accuracy", 0.8, (0.7, 0.79), False),
        ("accuracy", 0.8, (0.7, 0.8), True),
        ("accuracy", 0.8, (0.9, 0.7), False),
        ("mse", 0.8, (0.9, 0.81), False),
        ("mse", 0.8, (0.9, 0.8), True),
        ("mse", 0.8, (), False),
    ],
)
def test_the_target(name: str, target: float, values: tuple[float, ...], stops: bool) -> None:
    rule = dataclasses.replace(NEVER, target=target)
    reason = after(name, *values).reason_to_stop(rule)
    assert reason == ("validation reached 0.8, target 0.8" if stops else None)


@pytest.mark.parametrize(
    ("name", "values", "min_delta", "stale"),
    [
        ("accuracy", (0.5,), 0.0, 0),
        ("accuracy", (0.5, 0.5), 0.0, 1),
        ("accuracy", (0.5, 0.4, 0.45), 0.0, 2),
        ("accuracy", (0.5, 0.4, 0.6), 0.0, 0),
        ("accuracy", (0.5, 0.6, 0.7), 0.125, 0),  # small steps add up
        ("accuracy", (0.5, 0.6, 0.625), 0.125, 2),  # exactly min_delta is not enough
        ("mse", (0.5, 0.4, 0.6), 0.0, 1),
        ("mse", (0.5, 0.4, 0.3), 0.125, 0),
        ("mse", (0.5, None, None, 0.5), 0.0, 1),  # evaluations count, not rounds
    ],
)
def test_patience(
    name: str, values: tuple[float | None, ...], min_delta: float, stale: int
) -> None:
    standing = after(name, *values, min_delta=min_delta)
    assert standing.stale == stale
    if stale:
        reason = standing.reason_to_stop(dataclasses.replace(NEVER, patience=stale))
        assert reason == f"no improvement in {stale} evaluations"
    assert standing.reason_to_stop(dataclasses.replace(NEVER, patience=stale + 1)) is None
    assert standing.reason_to_stop(NEVER) is None


def test_the_best_round_is_no_matter_of_min_delta() -> None:
    standing = after("accuracy", 0.5, 0.51, min_delta=0.1)
    assert standing.best is not None
    assert standing.best["round"] == 2
    assert standing.stale == 1


def test_it_survives_json() -> None:
    standing = after("mse", 0.5, None, 0.25, 0.75, min_delta=0.1)
    values = json.loads(json.dumps(standing.as_json()))
    assert Standing.from_json(standing.arrays, values) == standing
    assert set(values) == {f.name for f in dataclasses.fields(Standing)} - {"arrays"}
