"""Which of a round's insights hold numbers that do not belong together, or with the others'.

For the record: nobody is refused for it, and policies have limits of their own. Numbers that
follow from each other are compared, and others are held against the upper quartile, beyond ten
(samples and steps) or a thousand times which hardly an honest client comes. What is plausible by
itself and beside the others is not found, and what it can do is bounded by the policies.

Letters: C clients that told something.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEWEST = 5  # clients that have a quartile
_ROUNDING = 1e-6
# How many times the upper quartile is strange. Training differs more from client to client than
# samples do: under strong label skew honest losses and gradients come to some hundred times.
_MOST = {
    "num_examples": 10.0, "epochs_trained": 10.0, "steps": 10.0, "validation_examples": 10.0,
    "final_loss": 1000.0, "loss_improvement": 1000.0, "mean_grad": 1000.0, "std_grad": 1000.0,
    "distance": 1000.0, "validation_loss": 1000.0, "uncertainty": 1000.0, "volatility": 1000.0,
    "calibration_error": 1000.0,
}  # fmt: skip


def strange_numbers(
    numbers: Mapping[str, NDArray[Any]], batch_size: int | None = None
) -> dict[int, list[str]]:
    """What is strange, by client.

    Args:
        numbers: of a round's insights, (C,) by name.
        batch_size: that clients train with, if it is known.
    """
    found: dict[int, list[str]] = {}

    def note(strange_C: NDArray[np.bool_], reason: str) -> None:
        for client in numbers["client_id"][strange_C].tolist():
            found.setdefault(client, []).append(reason)

    volatility_C = numbers["std_grad"] / (numbers["mean_grad"] + 1e-8)
    off_C = np.abs(numbers["volatility"] - volatility_C) > _ROUNDING * (1 + volatility_C)
    note(off_C, "volatility is not std_grad / mean_grad")
    if batch_size is not None:
        steps_C = numbers["epochs_trained"] * -(-numbers["num_examples"] // batch_size)
        note(numbers["steps"] != steps_C, "steps are not those of so many epochs and samples")
    for name, most in _MOST.items():
        size_C = np.abs(numbers[name].astype(np.float64))
        if len(size_C) >= _FEWEST and (usual := float(np.quantile(size_C, 0.75))):
            note(size_C > most * usual, f"{name} more than {most:g} times the upper quartile")
    return found
