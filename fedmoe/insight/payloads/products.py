"""Sums of products x x' as they are told: upper triangles, row by row.

Letters: C clients, n most samples of a client, D features, T = D (D + 1) / 2 pairs.
"""

from math import isqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# What float32 may lose of the smallest eigenvalue, over the sum of all.
_ROUNDING = 1e-5


def products_of(x_CnD: Tensor, chosen_Cn: Tensor) -> Tensor:
    """(C, T): each client's sum of x x' over some of its samples."""
    own_CnD = x_CnD.where(chosen_Cn.unsqueeze(-1), 0)
    rows, columns = torch.triu_indices(x_CnD.shape[-1], x_CnD.shape[-1], device=x_CnD.device)
    return torch.bmm(own_CnD.mT, own_CnD)[:, rows, columns]


def unpacked(packed: NDArray[Any]) -> NDArray[np.float64]:
    """Symmetric matrices, (..., D, D), of their upper triangles, (..., T)."""
    features = (isqrt(8 * packed.shape[-1] + 1) - 1) // 2
    rows, columns = np.triu_indices(features)
    whole = np.zeros((*packed.shape[:-1], features, features))
    whole[..., rows, columns] = packed
    whole[..., columns, rows] = packed
    return whole


def unpacked_tensor(packed: Tensor) -> Tensor:
    """`unpacked` of a tensor."""
    features = (isqrt(8 * packed.shape[-1] + 1) - 1) // 2
    rows, columns = torch.triu_indices(features, features, device=packed.device)
    whole = packed.new_zeros(*packed.shape[:-1], features, features)
    whole[..., rows, columns] = packed
    whole[..., columns, rows] = packed
    return whole


def packed(whole: NDArray[Any]) -> NDArray[Any]:
    """Upper triangles, (..., T), of symmetric matrices, (..., D, D)."""
    rows, columns = np.triu_indices(whole.shape[-1])
    return whole[..., rows, columns]


def is_negative(matrix_CDD: NDArray[np.float64], trace_C: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which matrices are not symmetric, or have an eigenvalue below 0, but for rounding, (C,).

    Args:
        matrix_CDD: differences of sums of products.
        trace_C: of what was subtracted from, in float32.
    """
    slack_C = _ROUNDING * np.abs(trace_C) + np.finfo(np.float64).tiny
    askew_C = np.abs(matrix_CDD - np.swapaxes(matrix_CDD, 1, 2)).max(axis=(1, 2)) > slack_C
    shifted_CDD = matrix_CDD + slack_C[:, None, None] * np.eye(matrix_CDD.shape[1])
    # A Cholesky factor exists of positive definite matrices alone, and is cheaper to look for.
    failed_C = torch.linalg.cholesky_ex(torch.from_numpy(shifted_CDD)).info.numpy() != 0
    return np.asarray(askew_C | failed_C)
