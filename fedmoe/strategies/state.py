"""A strategy's state, for checkpoints: its own account of it, or what can be seen from outside.

A strategy may have `state()` and `restore()`, as `InsightExchange` does. Of any other, Flower's
own included, the attributes are kept that hold numbers, arrays, tensors, or dictionaries of
arrays or tensors: that is where server optimisers have their moments.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import Tensor

Arrays = dict[str, NDArray[Any]]

_TENSORS = "tensors"  # which attributes were tensors, and must be again


def strategy_state(strategy: Strategy) -> tuple[Arrays, dict[str, Any]]:
    """Arrays by path, and plain values by name."""
    if hasattr(strategy, "state"):
        arrays, values = strategy.state()
        return arrays, values
    arrays, values, tensors = {}, {}, []
    for name, value in vars(strategy).items():
        if value is None or type(value) in (bool, int, float):
            values[name] = value
            continue
        named = value if isinstance(value, dict) else {"": value}
        if not named or not all(isinstance(one, np.ndarray | Tensor) for one in named.values()):
            continue
        if all(isinstance(one, Tensor) for one in named.values()):
            tensors.append(name)
        arrays |= {f"{name}/{key}": np.asarray(one) for key, one in named.items()}
    return arrays, {"values": values, _TENSORS: tensors}


def restore_strategy(
    strategy: Strategy, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
) -> None:
    """Undo `strategy_state` on a strategy built from the same configuration."""
    if hasattr(strategy, "restore"):
        strategy.restore(arrays, values)
        return
    for name, value in values["values"].items():
        setattr(strategy, name, value)
    groups: dict[str, dict[str, Any]] = {}
    for path, array in arrays.items():
        name, _, key = path.partition("/")
        groups.setdefault(name, {})[key] = (
            torch.from_numpy(array) if name in values[_TENSORS] else array
        )
    for name, group in groups.items():
        setattr(strategy, name, group.get("", group))
