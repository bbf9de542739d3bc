"""Samples as tensors, where cohorts gather their batches from."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
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
    def of(cls, x_ND: Floats, y_N: Floats | Ints, device: torch.device | None = None) -> "Pool":
        """Wrap arrays: without copying on the CPU, which is the default, else copied once."""
        device = device or torch.device("cpu")
        return cls(torch.from_numpy(x_ND).to(device), torch.from_numpy(y_N).to(device))

    @property
    def device(self) -> torch.device:
        """Where the samples lie, and so where cohorts train."""
        return self.x_ND.device

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The samples of any shape (...) of rows: (..., D) and (...) or (..., O)."""
        flat = rows.reshape(-1)  # `index_select` is several times faster than `x[rows]`
        x = self.x_ND.index_select(0, flat).view(*rows.shape, -1)
        return x, self.y_N.index_select(0, flat).view(*rows.shape, *self.y_N.shape[1:])

    def padded(self, rows_Cn: Ints, count_C: Ints) -> tuple[Tensor, Tensor, Tensor]:
        """Some clients' samples side by side.

        Args:
            rows_Cn: each client's rows, padded on the right.
            count_C: how many of them are real.

        Returns:
            (C, n, D) features, (C, n) or (C, n, O) targets, and (C, n) which of them are real.
        """
        x, y = self.batch(torch.from_numpy(rows_Cn).to(self.device))
        real_Cn = torch.from_numpy(np.arange(rows_Cn.shape[1]) < count_C[:, None])
        return x, y, real_Cn.to(self.device)


class Samples(NamedTuple):
    """Where some clients' samples lie.

    Attributes:
        pool: holds them, and may hold others'.
        rows_Cn: each client's rows of the pool, padded on the right.
        count_C: how many of them are real.
    """

    pool: Pool
    rows_Cn: Ints
    count_C: Ints

    def padded(self) -> tuple[Tensor, Tensor, Tensor]:
        """The samples side by side, see `Pool.padded`."""
        return self.pool.padded(self.rows_Cn, self.count_C)
