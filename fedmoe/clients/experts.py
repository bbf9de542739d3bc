"""What a client was sent of a model: checks, and the rows of some of a mixture's experts.

Letters: C clients, E experts, M chosen experts of a client.
"""

import torch
from torch import Tensor, nn

from fedmoe.models import MixtureOfExperts, Parameters

Shapes = dict[str, tuple[int, ...]]  # by name


def check_index(index_CM: Tensor, model: nn.Module, shared: Parameters) -> None:
    """Refuse an index of experts that cannot be.

    Args:
        index_CM: which experts came.
        model: the clients'.
        shared: what travels of it, (1, E, ...) by name.

    Raises:
        ValueError: there are none such, or they do not ascend.
    """
    if not isinstance(model, MixtureOfExperts):
        raise ValueError("experts were sent for a model that has none")
    most = model.num_experts
    if any(value.shape[1] != most for value in shared.values()):
        raise ValueError("experts were sent for a model whose experts do not all travel")
    ascends = bool((index_CM.diff(dim=1) > 0).all())
    within = bool(((index_CM >= 0) & (index_CM < most)).all())
    if not (ascends and within and index_CM.shape[1]):
        raise ValueError(f"experts {index_CM[0].tolist()} must ascend and lie in 0..{most - 1}")


def checked_model(params: Parameters, shared: Parameters, held: int | None) -> Parameters:
    """The arrays that were sent, with the device and kind of number of those that travel.

    Args:
        params: what came, (C, ...) or (1, ...) by name.
        shared: what travels of the model, (1, ...) by name.
        held: how many of a mixture's experts were sent; `None` for all.

    Raises:
        ValueError: they are not the parameters that travel.
    """
    rows = () if held is None else (held,)
    expected = {name: (*rows, *value.shape[1 + len(rows) :]) for name, value in shared.items()}
    shapes = {name: tuple(value.shape[1:]) for name, value in params.items()}
    if shapes != expected:
        raise ValueError(f"the received model {_difference(shapes, expected)}")
    # Flower's FedOpt family sends float64 for a float32 model.
    return {name: params[name].to(like.device, like.dtype) for name, like in shared.items()}


def _difference(shapes: Shapes, expected: Shapes) -> str:
    """The first difference between what came and what should have, in words."""
    if missing := sorted(expected.keys() - shapes.keys()):
        return f"lacks {', '.join(missing)}"
    if extra := sorted(shapes.keys() - expected.keys()):
        return f"has {', '.join(extra)}, which does not travel"
    name = next(name for name in expected if shapes[name] != expected[name])
    return f"has {name} of shape {shapes[name]}, expected {expected[name]}"


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
