"""Strategies: one algorithm a file, chosen by the configuration."""

from fedmoe.strategies.base import StackedFedAvg
from fedmoe.strategies.building import build_strategy, register
from fedmoe.strategies.ditto import Ditto
from fedmoe.strategies.fedadagrad import FedAdagrad
from fedmoe.strategies.fedadam import FedAdam
from fedmoe.strategies.fedavg import FedAvg
from fedmoe.strategies.fedavg_finetune import FedAvgFineTune
from fedmoe.strategies.fedem import FedEm
from fedmoe.strategies.fedmoe import FedMoE
from fedmoe.strategies.fedproto import FedProto
from fedmoe.strategies.fedprox import FedProx
from fedmoe.strategies.fedrep import FedRep
from fedmoe.strategies.fedyogi import FedYogi
from fedmoe.strategies.ifca import Ifca
from fedmoe.strategies.insight import InsightExchange, Insights, with_insights
from fedmoe.strategies.local import Local
from fedmoe.strategies.local_global import LocalGlobal
from fedmoe.strategies.reptile import Reptile

__all__ = [
    "Ditto",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgFineTune",
    "FedEm",
    "FedMoE",
    "FedProto",
    "FedProx",
    "FedRep",
    "FedYogi",
    "Ifca",
    "InsightExchange",
    "Insights",
    "Local",
    "LocalGlobal",
    "Reptile",
    "StackedFedAvg",
    "build_strategy",
    "register",
    "with_insights",
]
