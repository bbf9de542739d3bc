"""A strategy's state, for checkpoints: its own account of it, or what can be seen from outside.

A strategy may have `state()` and `restore()`, as `InsightExchange` does. Of any other, Flower's
own included, the attributes are kept that hold numbers, arrays, tensors, or dictionaries, lists
or records of arrays or tensors: that is where server optimisers have their moments.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import Tensor

from fedmoe.messages.arrays import to_record

Arrays = dict[str, NDArray[Any]]

_TENSORS = "tensors"  # which attributes were tensors, and must be again
_KINDS = "kinds"  # what their arrays were in
_BUILD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "alone": lambda arrays: arrays[""],
    "dict": dict,
    "list": lambda arrays: list(arrays.values()),
    "record": to_record,
}


def strategy_state(strategy: Strategy) -> tuple[Arrays, dict[str, Any]]:
    """Arrays by path, and plain values by name."""
    if hasattr(strategy, "state"):
        arrays, values = strategy.state()
        return arrays, values
    arrays, values, tensors, kinds = {}, {}, [], {}
    for name, value in vars(strategy).items():
        if value is None or type(value) in (bool, int, float):
            values[name] = value
            continue
        kind, named = _arrays_in(value)
        if not named or not all(isinstance(one, np.ndarray | Tensor) for one in named.values()):
            continue
        kinds[name] = kind
        if all(isinstance(one, Tensor) for one in named.values()):
            tensors.append(name)
        arrays |= {f"{name}/{key}": np.asarray(one) for key, one in named.items()}
    return arrays, {"values": values, _TENSORS: tensors, _KINDS: kinds}


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
        setattr(strategy, name, _BUILD[values[_KINDS][name]](group))


def _arrays_in(value: Any) -> tuple[str, dict[str, Any]]:
    """What an attribute is, and what it holds by key."""
    if isinstance(value, ArrayRecord):
        return "record", {key: array.numpy() for key, array in value.items()}
    if isinstance(value, list):
        return "list", {str(index): one for index, one in enumerate(value)}
    return ("dict", value) if isinstance(value, dict) else ("alone", {"": value})
