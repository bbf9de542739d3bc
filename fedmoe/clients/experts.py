"""Some of a mixture's experts: those that a client was sent, or has chosen.

Letters: C clients, E experts, M chosen experts of a client.
"""

import torch
from torch import Tensor

from fedmoe.models import Parameters


def held_rows(value: Tensor, index_CM: Tensor) -> Tensor:
    """The chosen experts' rows of (C or 1, E, ...): (C, M, ...)."""
    wide = value.expand(len(index_CM), *value.shape[1:])
    return wide[torch.arange(len(index_CM), device=value.device).unsqueeze(1), index_CM]


def with_rows(value: Tensor, index_CM: Tensor, rows: Tensor) -> Tensor:
    """A copy of (C or 1, E, ...) with the chosen experts' rows replaced by (C, M, ...)."""
    wide = value.expand(len(index_CM), *value.shape[1:]).clone()
    wide[torch.arange(len(index_CM), device=value.device).unsqueeze(1), index_CM] = rows
    return wide


def held_state(state: Parameters, index_CM: Tensor) -> Parameters:
    """The chosen experts' rows of an optimiser's state, (C, E, ...) by name.

    A client's number of steps, (C,), is no expert's and stays as it is.
    """
    return {n: held_rows(v, index_CM) if v.dim() > 1 else v for n, v in state.items()}


def with_state(state: Parameters, index_CM: Tensor, rows: Parameters) -> Parameters:
    """The reverse: a copy of the state in which the chosen experts' rows are replaced."""
    return {n: with_rows(state[n], index_CM, v) if v.dim() > 1 else v for n, v in rows.items()}
