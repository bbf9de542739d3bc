"""Some of a mixture's experts: those that a client was sent, or has chosen.

Letters: C clients, E experts, M chosen experts of a client.
"""

import torch
from torch import Tensor


def held_rows(value: Tensor, index_CM: Tensor) -> Tensor:
    """The chosen experts' rows of (C or 1, E, ...): (C, M, ...)."""
    wide = value.expand(len(index_CM), *value.shape[1:])
    return wide[torch.arange(len(index_CM), device=value.device).unsqueeze(1), index_CM]


def with_rows(value: Tensor, index_CM: Tensor, rows: Tensor) -> Tensor:
    """A copy of (C or 1, E, ...) with the chosen experts' rows replaced by (C, M, ...)."""
    wide = value.expand(len(index_CM), *value.shape[1:]).clone()
    wide[torch.arange(len(index_CM), device=value.device).unsqueeze(1), index_CM] = rows
    return wide
