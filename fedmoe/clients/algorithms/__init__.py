"""Local algorithms: what a client does with the model that it is sent."""

from collections.abc import Callable
from typing import Any

from fedmoe.clients.algorithms.base import LocalAlgorithm
from fedmoe.schema import StrategyConfig

__all__ = ["LocalAlgorithm", "local_algorithm"]

# By the strategy that it is the client's side of; any other trains all that it is sent.
_ALGORITHMS: dict[type, Callable[[Any], LocalAlgorithm]] = {}


def local_algorithm(config: StrategyConfig) -> LocalAlgorithm:
    """The client's side of a strategy."""
    make = _ALGORITHMS.get(type(config))
    return LocalAlgorithm() if make is None else make(config)
