"""Samples as tensors, where cohorts gather their batches from."""

from dataclasses import dataclass
from typing import NamedTuple

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

    def padded(self, rows_Cn: Ints, count_C: Ints) -> tuple[Tensor, Tensor, Tensor]:
        """Some clients' samples side by side.

        Args:
            rows_Cn: each client's rows, padded on the right.
            count_C: how many of them are real.

        Returns:
            (C, n, D) features, (C, n) or (C, n, O) targets, and (C, n) which of them are real.
        """
        rows = torch.from_numpy(rows_Cn)
        real_Cn = torch.arange(rows.shape[1]) < torch.from_numpy(count_C)[:, None]
        return self.x_ND[rows], self.y_N[rows], real_Cn


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
