"""What insights may carry besides numbers: one kind a file."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.insight.payloads.base import Facts, Payload, Sources, out_of_range
from fedmoe.insight.payloads.expert_load import ExpertLoad
from fedmoe.insight.payloads.gaussians import Gaussians
from fedmoe.insight.payloads.gradient_sketch import GradientSketch
from fedmoe.insight.payloads.logits import Logits
from fedmoe.insight.payloads.prototypes import Prototypes
from fedmoe.insight.payloads.spreads import Spreads
from fedmoe.insight.payloads.statistics import Statistics
from fedmoe.insight.payloads.traces import Traces

__all__ = ["PAYLOADS", "Facts", "Payload", "Payloads", "Sources"]

_KINDS = (Prototypes, Traces, Gaussians, Spreads, Statistics, ExpertLoad, GradientSketch, Logits)
PAYLOADS: dict[str, type[Payload]] = {kind.name: kind for kind in _KINDS}


class Payloads:
    """All payloads that there are for a task and a model.

    Attributes:
        by_name: those that fit.
        owner: name of the payload that each array belongs to.
    """

    def __init__(self, facts: Facts) -> None:
        made = [kind(facts) for kind in PAYLOADS.values()]
        self.by_name = {payload.name: payload for payload in made if payload.fits}
        self.owner = {array: one.name for one in self.by_name.values() for array in one.shapes}

    def fitting(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of some names that there are, each once and in a common order."""
        wanted = set(names)
        return tuple(name for name in self.by_name if name in wanted)

    def told(self, arrays: Iterable[str]) -> tuple[str, ...]:
        """Which payloads some arrays' names belong to."""
        return self.fitting({self.owner[name] for name in arrays if name in self.owner})

    def check(self, arrays: Mapping[str, NDArray[Any]], num_examples: int) -> None:
        """Refuse one client's arrays that no honest client could have sent.

        Raises:
            ValueError: names the array or the payload, and what is wrong.
        """
        for name, array in arrays.items():
            expected = self._shape(name)
            if array.shape != expected:
                raise ValueError(
                    f"insight payload {name} has shape {array.shape}, expected {expected}"
                )
            if array.dtype != np.float32:
                raise ValueError(f"insight payload {name} is {array.dtype}, expected float32")
            if out_of_range(array[None])[0]:
                raise ValueError(f"insight payload {name} is not finite")
        stacked = {name: array[None] for name, array in arrays.items()}
        for name in self.told(arrays):
            if self._wrong(self.by_name[name], stacked, np.array([num_examples]))[0]:
                raise ValueError(
                    f"insight payload {name} cannot be that of {num_examples} samples under "
                    "insight.min_count, insight.min_count_squares and insight.clip"
                )

    def implausible(
        self, arrays: Mapping[str, NDArray[Any]], num_examples_C: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Which of many clients' arrays, C in front, `check` may refuse, (C,)."""
        bad_C = np.full(len(num_examples_C), False)
        for name, array in arrays.items():
            if array.shape[1:] != self._shape(name) or array.dtype != np.float32:
                return ~bad_C
            bad_C |= out_of_range(array)
        for name in self.told(arrays):
            bad_C |= self._wrong(self.by_name[name], arrays, num_examples_C)
        return bad_C

    def _shape(self, array: str) -> tuple[int, ...] | None:
        return self.by_name[self.owner[array]].shapes[array] if array in self.owner else None

    @staticmethod
    def _wrong(
        payload: Payload, arrays: Mapping[str, NDArray[Any]], num_examples_C: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Of those that are whole: a payload in parts is none."""
        if payload.shapes.keys() - arrays.keys():
            return np.full(len(num_examples_C), True)
        with np.errstate(invalid="ignore", over="ignore"):  # others of the cohort may hold NaN
            return payload.implausible(arrays, num_examples_C)
