"""A strategy's state, for checkpoints: its own account of it, or what can be seen from outside.

Ours have `state()` and `restore()`. Flower's keep their server optimiser's moments in
attributes: numbers, arrays, and dictionaries of arrays.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def strategy_state(strategy: Strategy) -> tuple[Arrays, dict[str, Any]]:
    """Arrays by path, and plain values by name."""
    if hasattr(strategy, "state"):
        arrays, values = strategy.state()
        return arrays, values
    arrays, values = {}, {}
    for name, value in vars(strategy).items():
        if isinstance(value, np.ndarray):
            arrays[name] = value
        elif isinstance(value, dict) and value and _all_arrays(value):
            arrays |= {f"{name}/{key}": array for key, array in value.items()}
        elif value is None or type(value) in (bool, int, float):
            values[name] = value
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
    named: dict[str, Arrays] = {}
    for path, array in arrays.items():
        name, _, key = path.partition("/")
        if key:
            named.setdefault(name, {})[key] = array
        else:
            setattr(strategy, name, array)
    for name, group in named.items():
        setattr(strategy, name, group)


def _all_arrays(value: dict[Any, Any]) -> bool:
    return all(isinstance(one, np.ndarray) for one in value.values())
