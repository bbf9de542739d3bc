"""Samples as tensors, where cohorts gather their batches from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe.data.federation import Floats, Ints


@dataclass(frozen=True)
class Pool:
    """Samples as tensors.

    Attributes:
        x_ND: float32 features.
        y_N: int64 classes (N,) or float32 targets (N, O).
    """

    x_ND: Tensor
    y_N: Tensor

    @classmethod
    def of(cls, x_ND: Floats, y_N: Floats | Ints) -> "Pool":
        """Wrap arrays without copying."""
        return cls(torch.from_numpy(x_ND), torch.from_numpy(y_N))
