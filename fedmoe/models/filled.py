"""A module of its own for parameters that were trained elsewhere."""

from collections.abc import Mapping
from copy import deepcopy

from torch import Tensor, nn


def filled(model: nn.Module, params: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model with other parameters, on the CPU and set to evaluate.

    Args:
        model: is not changed.
        params: one client's, by name; a parameter of a mixture that holds fewer of its experts
            may be smaller than the model's own.
    """
    made = deepcopy(model)
    for name, value in params.items():
        owner, _, leaf = name.rpartition(".")
        setattr(made.get_submodule(owner), leaf, nn.Parameter(value.detach().cpu().clone()))
    return made.eval()
