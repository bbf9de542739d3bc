"""Where a model's body ends and its head begins.

The body maps inputs to a representation, and the head that to outputs.
"""

import re
from collections.abc import Sequence

import torch
from torch import nn

from fedmoe.data.federation import Task
from fedmoe.errors import ConfigError
from fedmoe.models.base import as_output
from fedmoe.models.moe import MixtureOfExperts

# How a perceptron calls its layers: lists of weights and of biases.
_NUMBERED = re.compile(r"((?:.*\.)?)(?:weights|biases)\.(\d+)")


def head_names(model: nn.Module, chosen: Sequence[str] | None = None) -> frozenset[str]:
    """The names of the head's parameters.

    The head of a perceptron is its last layer, and so that of a linear model is all of it; of a
    mixture it is the last layers of its experts (the router belongs to the body); of any other
    module it is what belongs to the same submodule as the last parameter, in the order in which
    they were assigned.

    Args:
        model: the model.
        chosen: names of parameters, or of submodules for all that is below them, in place of
            the above.

    Raises:
        ConfigError: the model has nothing of a chosen name.
    """
    names = [name for name, _ in model.named_parameters()]
    if chosen is None:
        is_mixture = isinstance(model, MixtureOfExperts)
        return _last_layer([n for n in names if not is_mixture or n.startswith("expert")])
    for one in chosen:
        if not any(_is_below(name, one) for name in names):
            raise ConfigError(
                f"strategy.head={list(chosen)}: the model has no {one!r}; "
                f"its parameters are {', '.join(names)}"
            )
    return frozenset(name for name in names if any(_is_below(name, one) for one in chosen))


def _is_below(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


def _last_layer(names: Sequence[str]) -> frozenset[str]:
    """Those of the names that belong to the same layer as the last of them."""
    layer = _NUMBERED.fullmatch(names[-1])
    if layer:
        return frozenset(f"{layer[1]}{kind}.{layer[2]}" for kind in ("weights", "biases"))
    parent = names[-1].rpartition(".")[0]
    return frozenset(name for name in names if name.rpartition(".")[0] == parent)


@torch.no_grad()
def representation_width(model: nn.Module, task: Task) -> int:
    """F, the number of a representation's axes.

    Raises:
        ConfigError: the model's representation of a sample is not a vector.
    """
    shape = as_output(model.eval()(torch.zeros(2, task.num_features))).features.shape
    if len(shape) != 2:
        kind = type(model).__name__
        raise ConfigError(f"{kind}: two samples have features {tuple(shape)}, expected (2, F)")
    return shape[1]
