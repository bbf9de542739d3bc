"""Traces: how far a client's inputs of each class lie from their mean, one number a class.

What it tells: the sum over features of the squared distances from the class's mean; beside
`prototypes`, of a class of two samples, how far the two are apart, but not in which direction.
Classes with fewer than `insight.min_count` samples are not told; with a single feature there is
only one direction, and fewer than `insight.min_count_squares` are not.

Letters: C clients, n most samples of a client, D features, O classes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedmoe.insight.payloads.base import ROUNDING, ClassPayload, Shapes, Sources, shortened
from fedmoe.training.representations import class_sums


class Traces(ClassPayload):
    """`class_trace` (O,)."""

    name = "traces"

    @property
    @override
    def shapes(self) -> Shapes:
        return {"class_trace": (self.facts.task.num_outputs,)}

    @property
    def _fewest(self) -> int:
        config = self.facts.config
        return config.min_count if self.facts.task.num_features > 1 else config.min_count_squares

    @override
    def make(self, sources: Sources) -> dict[str, Tensor]:
        outputs = self.facts.task.num_outputs
        x_CnD = shortened(sources, self.facts.config.clip)
        sum_COD, count_CO = class_sums(x_CnD, sources.y_Cn, sources.real_Cn, outputs)
        mean_COD = sum_COD / count_CO.clamp_min(1).unsqueeze(-1)
        own_CnD = mean_COD.gather(1, sources.y_Cn.unsqueeze(-1).expand_as(x_CnD))
        away_Cn1 = (x_CnD - own_CnD).square().sum(dim=-1, keepdim=True)
        spread_CO1, _ = class_sums(away_Cn1, sources.y_Cn, sources.real_Cn, outputs)
        return {"class_trace": spread_CO1[..., 0].where(count_CO >= self._fewest, 0)}

    @override
    def implausible(
        self, arrays: Mapping[str, NDArray[Any]], num_examples_C: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Squares below 0, or more than samples no longer than `clip` can have."""
        clip, spread_CO = self.facts.config.clip, arrays["class_trace"].astype(np.float64)
        most_C = np.full(len(num_examples_C), np.inf)
        if clip is not None:
            most_C = (1 + ROUNDING) * clip**2 * np.asarray(num_examples_C, dtype=np.float64)
        return np.asarray((spread_CO < 0).any(axis=1) | (spread_CO.sum(axis=1) > most_C))
