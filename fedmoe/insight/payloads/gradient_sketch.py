"""Gradient sketch: a few numbers from which the directions of clients' updates can be compared.

A count-sketch (Charikar, Chen and Farach-Colton, ICALP 2002; as feature hashing in arXiv
0902.2206, which shows that inner products of sketches estimate those of the vectors): each
parameter's change is added, with a sign, to one of m numbers; sign and place follow from the
experiment's seed, so that all clients' sketches can be compared, and those of other rounds. The
sketch is divided by its norm: the inner product of two is then an estimate of their cosine with
a deviation of (1 - cosine^2) / sqrt(m), exact for equal directions. How far a model has moved is
among an insight's numbers. As it is for clustering clients, it is told in the first
`insight.sketch_rounds` rounds, where all begin from the same model.

What it tells: m linear equations about the update; m is no more than the features, so that they
leave even one sample's inputs undetermined by themselves. What somebody knows besides (most
inputs are 0, say) may make up for it. An update after one step on one sample is the sample, so a
client with fewer than `insight.min_count` samples tells zeros.

Letters: C clients, P parameters, m numbers of a sketch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedmoe.data.drawing import hash_keys
from fedmoe.insight.payloads.base import Payload, Shapes, Sources, enough


class GradientSketch(Payload):
    """`gradient_sketch` (m,), of norm 1, m being `insight.sketch_size`, or D if that is less."""

    name = "gradient_sketch"
    of_data = False

    @property
    @override
    def shapes(self) -> Shapes:
        size = min(self.facts.config.sketch_size, self.facts.task.num_features)
        return {"gradient_sketch": (size,)}

    @override
    def due(self, round: int) -> bool:
        return round <= self.facts.config.sketch_rounds

    @override
    def make(self, sources: Sources) -> dict[str, Tensor]:
        (size,) = self.shapes["gradient_sketch"]
        sketch_Cm = count_sketch(sources.change(), size, self.facts.seed)
        norm_C1 = sketch_Cm.norm(dim=1, keepdim=True)
        sketch_Cm = sketch_Cm / torch.where(norm_C1 > 0, norm_C1, 1)
        return {"gradient_sketch": enough(sources, self.facts.config.min_count, sketch_Cm)}

    @override
    def implausible(
        self, arrays: Mapping[str, NDArray[Any]], num_examples_C: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """A norm that is neither 1 nor 0, or anything of too few samples."""
        norm_C = np.linalg.norm(arrays["gradient_sketch"].astype(np.float64), axis=1)
        few_C = num_examples_C < self.facts.config.min_count
        return np.asarray((norm_C != 0) & (few_C | (np.abs(norm_C - 1) > 1e-3)))


def count_sketch(vector_CP: Tensor, size: int, seed: int) -> Tensor:
    """(C, m): sums of the entries that share a place, each with its own sign.

    Args:
        vector_CP: what is to be told of.
        size: m.
        seed: of places and signs.
    """
    key_P = hash_keys(seed, np.arange(vector_CP.shape[1]))
    place_P = torch.from_numpy((key_P % np.uint64(size)).astype(np.int64)).to(vector_CP.device)
    # The highest bit, which has next to nothing to do with the remainder.
    sign_P = torch.from_numpy(1 - 2 * (key_P >> np.uint64(63)).astype(np.int64)).to(vector_CP)
    sketch_Cm = vector_CP.new_zeros(len(vector_CP), size)
    return sketch_Cm.index_add_(1, place_P, vector_CP * sign_P)
