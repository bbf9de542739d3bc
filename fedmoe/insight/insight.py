"""The insight: what a client tells about its training instead of its weights.

A record of version 2: numbers, the same for every strategy, and payloads (`insight.payloads`).

Letters: C clients.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.insight.payloads import Payloads
from fedmoe.insight.payloads.base import MAX_MAGNITUDE

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Insight:
    """One client's report on one round of local training.

    Attributes:
        client_id: the client's partition.
        round: of the federation, from 1.
        num_examples: samples trained on.
        epochs_trained: passes over them.
        steps: of the optimiser.
        guidance_parts: how many parts of guidance the client holds; a server that has told it
            another number tells it all once more.
        final_loss: mean training loss over the last epoch.
        loss_improvement: first epoch's mean loss minus the last one's.
        mean_grad: mean L2 norm of the gradient over the steps.
        std_grad: its standard deviation.
        distance: L2 norm of what the round changed of the client's model.
        validation_examples: samples held out for validation.
        validation_loss: mean loss on them after training; 0 if there are none.
        uncertainty: predictive uncertainty on held-out local data: normalised entropy in [0, 1]
            for classes, root mean squared error for regression.
        volatility: std_grad / mean_grad, how unsteady training was (the original's
            "uncertainty").
        calibration_error: expected calibration error of the predicted classes on held-out local
            data, in [0, 1]: how far confidence is from accuracy; 0 for regression.
        payload: arrays by name, see `fedmoe.insight.payloads`.
    """

    client_id: int
    round: int
    num_examples: int
    epochs_trained: int
    steps: int
    guidance_parts: int
    final_loss: float
    loss_improvement: float
    mean_grad: float
    std_grad: float
    distance: float
    validation_examples: int
    validation_loss: float
    uncertainty: float
    volatility: float
    calibration_error: float
    payload: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def scalars(self) -> dict[str, int | float]:
        """The numbers, without the payload."""
        return {name: getattr(self, name) for name in SCALARS}

    def check(self, payloads: Payloads) -> None:
        """Refuse an insight that no honest client could have sent.

        Args:
            payloads: that there are.

        Raises:
            ValueError: names the field, its value and what is allowed.
        """
        for name in SCALARS:
            value = getattr(self, name)
            if not math.isfinite(value) or abs(value) > MAX_MAGNITUDE:
                raise ValueError(f"insight {name}={value}: must be finite")
            if name not in _SIGNED and value < 0:
                raise ValueError(f"insight {name}={value}: must not be negative")
        payloads.check(self.payload, self.num_examples)


def implausible(
    numbers: Mapping[str, NDArray[Any]], payload: Mapping[str, NDArray[Any]], payloads: Payloads
) -> NDArray[np.bool_]:
    """Which of many insights `check` may refuse, (C,); the others it would accept.

    Args:
        numbers: each of `SCALARS`, (C,).
        payload: arrays with C in front.
        payloads: that there are.
    """
    bad_C = np.full(len(numbers["client_id"]), False)
    for name in SCALARS:
        bad_C |= ~(np.abs(numbers[name]) <= MAX_MAGNITUDE)  # NaN compares with nothing
        if name not in _SIGNED:
            bad_C |= numbers[name] < 0
    return bad_C | payloads.implausible(payload, numbers["num_examples"])


SCALARS = tuple(f.name for f in fields(Insight) if f.name != "payload")
# The others are real numbers.
WHOLE = (
    "client_id", "round", "num_examples", "epochs_trained", "steps", "guidance_parts",
    "validation_examples",
)  # fmt: skip
_SIGNED = ("final_loss", "loss_improvement", "validation_loss")  # a loss may be below 0


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
