"""The insight: what a client tells about its training instead of its weights.

Letters: O outputs (classes), D features, P = D + 1 coefficients of a linear model with bias.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.data.federation import Task

SCHEMA_VERSION = 1
MAX_MAGNITUDE = 1e12  # no honest statistic of ours comes near; keeps sums finite


@dataclass(frozen=True, kw_only=True)
class Insight:
    """One client's report on one round of local training.

    Attributes:
        client_id: the client's partition.
        round: of the federation, from 1.
        num_examples: samples trained on.
        epochs_trained: passes over them.
        final_loss: mean training loss over the last epoch.
        loss_improvement: first epoch's mean loss minus the last one's.
        mean_grad: mean L2 norm of the gradient over the steps.
        std_grad: its standard deviation.
        uncertainty: predictive uncertainty on held-out local data: normalised entropy in [0, 1]
            for classes, root mean squared error for regression.
        volatility: std_grad / mean_grad, how unsteady training was (the original's
            "uncertainty").
        payload: arrays by name: `prototype_sum` (O, D) and `prototype_count` (O,), or
            `statistics_xx` (P, P), `statistics_xy` (P, O) and `statistics_yy` (O,).
    """

    client_id: int
    round: int
    num_examples: int
    epochs_trained: int
    final_loss: float
    loss_improvement: float
    mean_grad: float
    std_grad: float
    uncertainty: float
    volatility: float
    payload: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def scalars(self) -> dict[str, int | float]:
        """The numbers, without the payload."""
        return {name: getattr(self, name) for name in SCALARS}

    def as_json(self) -> dict[str, Any]:
        """The numbers, and the payload's names and sizes in bytes."""
        sizes = {name: int(array.nbytes) for name, array in self.payload.items()}
        return {**self.scalars(), "payload_bytes": sizes}

    def check(self, task: Task) -> None:
        """Refuse an insight that no honest client could have sent.

        Raises:
            ValueError: names the field, its value and what is allowed.
        """
        for name in SCALARS:
            value = getattr(self, name)
            if not math.isfinite(value) or abs(value) > MAX_MAGNITUDE:
                raise ValueError(f"insight {name}={value}: must be finite")
        for name in _NON_NEGATIVE:
            if getattr(self, name) < 0:
                raise ValueError(f"insight {name}={getattr(self, name)}: must not be negative")
        shapes = payload_shapes(task)
        for name, array in self.payload.items():
            if array.shape != shapes.get(name):
                raise ValueError(
                    f"insight payload {name} has shape {array.shape}, expected {shapes.get(name)}"
                )
            if not np.isfinite(array).all() or np.abs(array).max(initial=0) > MAX_MAGNITUDE:
                raise ValueError(f"insight payload {name} is not finite")
        counts = self.payload.get("prototype_count")
        if counts is not None and ((counts < 0).any() or counts.sum() > self.num_examples):
            raise ValueError(
                f"insight prototype_count sums to {counts.sum()}, "
                f"must be between 0 and num_examples = {self.num_examples}"
            )


def implausible(
    numbers: Mapping[str, NDArray[Any]], payload: Mapping[str, NDArray[Any]], task: Task
) -> NDArray[np.bool_]:
    """Which of many insights `check` may refuse, (C,); the others it would accept.

    Args:
        numbers: each of `SCALARS`, (C,).
        payload: arrays with C in front.
        task: fixes their shapes.
    """
    bad = np.full(len(numbers["client_id"]), False)
    for name in SCALARS:
        bad |= ~(np.abs(numbers[name]) <= MAX_MAGNITUDE)  # NaN compares with nothing
    for name in _NON_NEGATIVE:
        bad |= numbers[name] < 0
    shapes = payload_shapes(task)
    for name, array in payload.items():
        if array.shape[1:] != shapes.get(name):
            return np.full(len(bad), True)
        flat = array.reshape(len(bad), -1)
        bad |= ~((flat.max(axis=1) <= MAX_MAGNITUDE) & (flat.min(axis=1) >= -MAX_MAGNITUDE))
    counts = payload.get("prototype_count")
    if counts is not None:
        bad |= (counts < 0).any(axis=1) | (counts.sum(axis=1) > numbers["num_examples"])
    return bad


SCALARS = tuple(f.name for f in fields(Insight) if f.name != "payload")
WHOLE = ("client_id", "round", "num_examples", "epochs_trained")  # the others are real numbers
_NON_NEGATIVE = (
    "client_id", "round", "num_examples", "epochs_trained", "mean_grad", "std_grad",
    "uncertainty", "volatility",
)  # fmt: skip


def payload_shapes(task: Task) -> dict[str, tuple[int, ...]]:
    """The shape that each payload array must have for a task."""
    features, outputs = task.num_features, task.num_outputs
    return {
        "prototype_sum": (outputs, features),
        "prototype_count": (outputs,),
        "statistics_xx": (features + 1, features + 1),
        "statistics_xy": (features + 1, outputs),
        "statistics_yy": (outputs,),
    }


def from_fields(scalars: Mapping[str, Any], payload: Mapping[str, NDArray[Any]]) -> Insight:
    """Put a received insight together.

    Raises:
        ValueError: a field is missing, unknown, or not a number.
    """
    missing = [name for name in SCALARS if name not in scalars]
    unknown = [name for name in scalars if name not in SCALARS]
    if missing or unknown:
        raise ValueError(f"insight fields missing: {missing}, unknown: {unknown}")
    for name, value in scalars.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"insight {name}={value!r}: must be a number")
    for name in WHOLE:
        if scalars[name] != int(scalars[name]):
            raise ValueError(f"insight {name}={scalars[name]}: must be a whole number")
    return Insight(**{k: scalars[k] for k in SCALARS}, payload=dict(payload))
