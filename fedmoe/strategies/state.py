"""A strategy's state, for checkpoints: its own account of it, or what can be seen from outside.

Ours have `state()` and `restore()`. Flower's keep their server optimiser's moments in
attributes: numbers, arrays, and dictionaries, lists or records of arrays.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedmoe.messages.arrays import to_record

Arrays = dict[str, NDArray[Any]]

# An attribute's arrays are saved as `attribute/kind/key`; how each kind is put together again.
_BUILD: dict[str, Callable[[Arrays], Any]] = {
    "array": lambda arrays: arrays[""],
    "dict": dict,
    "list": lambda arrays: [arrays[str(index)] for index in range(len(arrays))],
    "record": to_record,
}


def strategy_state(strategy: Strategy) -> tuple[Arrays, dict[str, Any]]:
    """Arrays by path, and plain values by name."""
    if hasattr(strategy, "state"):
        arrays, values = strategy.state()
        return arrays, values
    arrays, values = {}, {}
    for name, value in vars(strategy).items():
        if value is None or type(value) in (bool, int, float):
            values[name] = value
        elif seen := _arrays_of(value):
            kind, group = seen
            arrays |= {f"{name}/{kind}/{key}": array for key, array in group.items()}
    return arrays, values


def restore_strategy(
    strategy: Strategy, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
) -> None:
    """Undo `strategy_state` on a strategy built from the same configuration."""
    if hasattr(strategy, "restore"):
        strategy.restore(arrays, values)
        return
    for name, value in values.items():
        setattr(strategy, name, value)
    groups: dict[tuple[str, str], Arrays] = {}
    for path, array in arrays.items():
        name, kind, key = path.split("/", maxsplit=2)
        groups.setdefault((name, kind), {})[key] = array
    for (name, kind), group in groups.items():
        setattr(strategy, name, _BUILD[kind](group))


def _arrays_of(value: object) -> tuple[str, Arrays] | None:
    """An attribute's kind and its arrays by key; `None` if it is anything else."""
    if isinstance(value, np.ndarray):
        return "array", {"": value}
    if isinstance(value, ArrayRecord):
        return "record", {key: array.numpy() for key, array in value.items()}
    kind = "dict" if isinstance(value, dict) else "list"
    if isinstance(value, list):
        value = {str(index): one for index, one in enumerate(value)}
    if isinstance(value, dict) and all(isinstance(one, np.ndarray) for one in value.values()):
        return kind, value
    return None
