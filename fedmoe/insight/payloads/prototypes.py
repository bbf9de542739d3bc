"""Prototypes: sum and number of a client's inputs of each class.

What it tells: which classes a client has, how many samples of each, and their mean. Classes with
fewer than `insight.min_count` samples are not told; the mean of a single sample is that sample.

Letters: C clients, n most samples of a client, D features, O classes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedmoe.insight.payloads.base import (
    ROUNDING,
    ClassPayload,
    Shapes,
    Sources,
    shortened,
    wrong_counts,
)
from fedmoe.training.representations import class_sums


class Prototypes(ClassPayload):
    """`prototype_sum` (O, D) and `prototype_count` (O,)."""

    name = "prototypes"

    @property
    @override
    def shapes(self) -> Shapes:
        task = self.facts.task
        return {
            "prototype_sum": (task.num_outputs, task.num_features),
            "prototype_count": (task.num_outputs,),
        }

    @override
    def make(self, sources: Sources) -> dict[str, Tensor]:
        config, outputs = self.facts.config, self.facts.task.num_outputs
        x_CnD = shortened(sources, config.clip)
        sum_COD, count_CO = class_sums(x_CnD, sources.y_Cn, sources.real_Cn, outputs)
        told_CO = (count_CO >= config.min_count).float()
        return {
            "prototype_sum": sum_COD * told_CO.unsqueeze(-1),
            "prototype_count": count_CO * told_CO,
        }

    @override
    def implausible(
        self, arrays: Mapping[str, NDArray[Any]], num_examples_C: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Classes that are too small to be told, more samples than there are, too long inputs."""
        config = self.facts.config
        sum_COD, count_CO = arrays["prototype_sum"], arrays["prototype_count"]
        length_CO = np.linalg.norm(sum_COD.astype(np.float64), axis=2)
        longest = np.inf if config.clip is None else config.clip
        with np.errstate(invalid="ignore"):  # infinity times 0 samples is none at all
            allowed_CO = np.where(count_CO > 0, (1 + ROUNDING) * longest * count_CO, 0.0)
        bad_C = wrong_counts(count_CO, num_examples_C, config.min_count)
        return np.asarray(bad_C | (length_CO > allowed_CO).any(axis=1))
