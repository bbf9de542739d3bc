"""Local algorithms: what a client does with the model that it is sent."""

from collections.abc import Callable
from typing import Any

from fedmoe.clients.algorithms.base import LocalAlgorithm
from fedmoe.clients.algorithms.ditto import Ditto
from fedmoe.clients.algorithms.fedavg_finetune import FedAvgFineTune
from fedmoe.clients.algorithms.fedem import FedEm
from fedmoe.clients.algorithms.fedmoe import FedMoE
from fedmoe.clients.algorithms.fedproto import FedProto
from fedmoe.clients.algorithms.fedrep import FedRep
from fedmoe.clients.algorithms.ifca import Ifca
from fedmoe.clients.algorithms.insight import InsightExchange
from fedmoe.clients.algorithms.local_global import LocalGlobal
from fedmoe.data.federation import Task
from fedmoe.models import Parameters, parameters_of
from fedmoe.schema import (
    DittoConfig,
    ExperimentConfig,
    FedAvgFineTuneConfig,
    FedEmConfig,
    FedMoeConfig,
    FedProtoConfig,
    FedRepConfig,
    IfcaConfig,
    InsightExchangeConfig,
    LocalGlobalConfig,
    StrategyConfig,
)

__all__ = ["LocalAlgorithm", "initial_shared", "local_algorithm"]

# By the strategy that it is the client's side of; any other trains all that it is sent.
_ALGORITHMS: dict[type, Callable[[Any], LocalAlgorithm]] = {
    FedEmConfig: FedEm,
    FedMoeConfig: FedMoE,
    IfcaConfig: Ifca,
    LocalGlobalConfig: lambda _: LocalGlobal(),
    DittoConfig: Ditto,
    FedAvgFineTuneConfig: FedAvgFineTune,
    FedRepConfig: FedRep,
    FedProtoConfig: FedProto,
    InsightExchangeConfig: InsightExchange,
}


def local_algorithm(config: StrategyConfig) -> LocalAlgorithm:
    """The client's side of a strategy."""
    make = _ALGORITHMS.get(type(config))
    return LocalAlgorithm() if make is None else make(config)


def initial_shared(config: ExperimentConfig, task: Task, seed: int) -> Parameters:
    """What travels of a model fresh from another seed, (...) by name."""
    algorithm = local_algorithm(config.strategy)
    model = algorithm.build(config.model, task, seed)
    whole = {name: value[None] for name, value in parameters_of(model).items()}
    return {name: value[0] for name, value in algorithm.split(model, whole)[0].items()}
