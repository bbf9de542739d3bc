"""A strategy's state, for checkpoints: its own account of it, or what can be seen from outside.

A strategy may have methods `state()` and `restore()`, as `InsightExchange` does. Of any other,
Flower's own included, every attribute is kept that is made of numbers, text, arrays and tensors,
nested in dictionaries and lists as deep as may be: that is where server optimisers have their
moments. An attribute with these two methods, as `FedMoE.assignment`, is asked as well. Functions
and other objects come from the configuration again.
"""

import logging
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import Tensor

from fedmoe.messages.arrays import to_record

_LOG = logging.getLogger("fedmoe.strategies.state")
_ARRAY, _KIND = "$array", "$kind"  # stand in the plain values for an array kept beside them
_OWN = "own"  # kind of an attribute that accounts for itself

Arrays = dict[str, NDArray[Any]]


@runtime_checkable
class AccountsForItself(Protocol):
    """What says by itself what a checkpoint is to keep of it."""

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays by path, and plain values by name."""
        ...

    def restore(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Undo `state`."""
        ...


def strategy_state(strategy: Strategy) -> tuple[Arrays, dict[str, Any]]:
    """Arrays by path, and plain values by name."""
    if isinstance(strategy, AccountsForItself):
        return strategy.state()
    arrays: Arrays = {}
    values: dict[str, Any] = {}
    for name, value in vars(strategy).items():
        if isinstance(value, AccountsForItself):
            own, held = value.state()
            arrays |= {f"{name}/{path}": array for path, array in own.items()}
            values[name] = {_KIND: _OWN, "held": held}
            continue
        try:
            values[name] = _pack(value, name, arrays)
        except TypeError as error:
            if isinstance(value, dict | list | tuple):  # data, and not a part of the machinery
                _LOG.warning("a checkpoint cannot hold the strategy's %s: %s", name, error)
    return arrays, values


def restore_strategy(
    strategy: Strategy, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
) -> None:
    """Undo `strategy_state` on a strategy built from the same configuration."""
    if isinstance(strategy, AccountsForItself):
        strategy.restore(arrays, values)
        return
    for name, value in values.items():
        if isinstance(value, dict) and value[_KIND] == _OWN:
            prefix = f"{name}/"
            own = {p.removeprefix(prefix): a for p, a in arrays.items() if p.startswith(prefix)}
            getattr(strategy, name).restore(own, value["held"])
        else:
            setattr(strategy, name, _unpack(value, arrays))


def _pack(value: Any, path: str, arrays: Arrays) -> Any:
    """A plain value in place of `value`; its arrays go to `arrays`.

    Raises:
        TypeError: it holds something that is neither plain nor an array.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, ArrayRecord):
        named = {name: array.numpy() for name, array in value.items()}
        return {_KIND: "record", "held": _pack(named, path, arrays)}
    if isinstance(value, np.ndarray | np.generic | Tensor):
        arrays[path] = np.asarray(value.cpu() if isinstance(value, Tensor) else value)
        return {_KIND: "tensor" if isinstance(value, Tensor) else "array", _ARRAY: path}
    if isinstance(value, dict):
        items = [
            [_pack(k, path, arrays), _pack(v, f"{path}/{k}", arrays)] for k, v in value.items()
        ]
        return {_KIND: "dict", "held": items}
    if isinstance(value, list | tuple):
        held = [_pack(one, f"{path}/{index}", arrays) for index, one in enumerate(value)]
        return held if isinstance(value, list) else {_KIND: "tuple", "held": held}
    raise TypeError(f"{path} is a {type(value).__name__}")


def _unpack(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    if isinstance(value, list):
        return [_unpack(one, arrays) for one in value]
    if not isinstance(value, dict):
        return value
    kind = value[_KIND]
    if kind in ("array", "tensor"):
        array = arrays[value[_ARRAY]]
        return torch.from_numpy(array) if kind == "tensor" else array
    held = value["held"]
    if kind == "dict":
        return {_unpack(key, arrays): _unpack(one, arrays) for key, one in held}
    unpacked = _unpack(held, arrays)
    return tuple(unpacked) if kind == "tuple" else to_record(unpacked)
