"""Strategies that learn one model for all clients."""

from typing import Literal

from pydantic.dataclasses import dataclass

from fedmoe.schema.strategy_base import StrategyBase
from fedmoe.schema.types import STRICT, Count, Fraction, NonNegative, Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedAvgConfig(StrategyBase):
    """Federated averaging (arXiv 1602.05629)."""

    name: Literal["fedavg"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedAvgFineTuneConfig(StrategyBase):
    """FedAvg whose clients fine-tune the global model before they use it (arXiv 2108.07313).

    Attributes:
        finetune_epochs: passes over a client's training part from the global model.
    """

    name: Literal["fedavg_finetune"]
    finetune_epochs: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedProxConfig(StrategyBase):
    """FedAvg with a proximal term at the client (arXiv 1812.06127).

    Attributes:
        proximal_mu: weight of mu / 2 * ||w - w_global||^2.
    """

    name: Literal["fedprox"]
    proximal_mu: NonNegative


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedAdamConfig(StrategyBase):
    """Adam at the server (arXiv 2003.00295).

    Attributes:
        eta: server learning rate.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        tau: adaptivity, added to the root of the second moment.
    """

    name: Literal["fedadam"]
    eta: Positive
    beta_1: Fraction
    beta_2: Fraction
    tau: Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedYogiConfig(StrategyBase):
    """Yogi at the server (arXiv 2003.00295).

    Attributes:
        eta, beta_1, beta_2, tau: as of `FedAdamConfig`.
    """

    name: Literal["fedyogi"]
    eta: Positive
    beta_1: Fraction
    beta_2: Fraction
    tau: Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedAdagradConfig(StrategyBase):
    """Adagrad at the server (arXiv 2003.00295).

    Attributes:
        eta: server learning rate.
        tau: adaptivity, added to the root of the sum of squares.
    """

    name: Literal["fedadagrad"]
    eta: Positive
    tau: Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ReptileConfig(StrategyBase):
    """Reptile (arXiv 1803.02999): a step of the server towards the average.

    Attributes:
        epsilon: its length as a share of the way; 1 is FedAvg.
    """

    name: Literal["reptile"]
    epsilon: Positive
