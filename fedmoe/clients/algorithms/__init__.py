"""Local algorithms: what a client does with the model that it is sent."""

from collections.abc import Callable
from typing import Any

from fedmoe.clients.algorithms.base import LocalAlgorithm
from fedmoe.clients.algorithms.ditto import Ditto
from fedmoe.clients.algorithms.fedavg_finetune import FedAvgFineTune
from fedmoe.clients.algorithms.fedproto import FedProto
from fedmoe.clients.algorithms.fedrep import FedRep
from fedmoe.schema import (
    DittoConfig,
    FedAvgFineTuneConfig,
    FedProtoConfig,
    FedRepConfig,
    StrategyConfig,
)

__all__ = ["LocalAlgorithm", "local_algorithm"]

# By the strategy that it is the client's side of; any other trains all that it is sent.
_ALGORITHMS: dict[type, Callable[[Any], LocalAlgorithm]] = {
    DittoConfig: Ditto,
    FedAvgFineTuneConfig: FedAvgFineTune,
    FedRepConfig: FedRep,
    FedProtoConfig: FedProto,
}


def local_algorithm(config: StrategyConfig) -> LocalAlgorithm:
    """The client's side of a strategy."""
    make = _ALGORITHMS.get(type(config))
    return LocalAlgorithm() if make is None else make(config)
