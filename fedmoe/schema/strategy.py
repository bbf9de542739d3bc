"""What travels, and how it is merged: one class per strategy."""

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedmoe.schema.global_strategies import (
    FedAdagradConfig,
    FedAdamConfig,
    FedAvgConfig,
    FedAvgFineTuneConfig,
    FedProxConfig,
    FedYogiConfig,
    ReptileConfig,
)
from fedmoe.schema.personal_strategies import (
    DittoConfig,
    FedEmConfig,
    FedMoeConfig,
    FedProtoConfig,
    FedRepConfig,
    IfcaConfig,
    LocalConfig,
    LocalGlobalConfig,
)
from fedmoe.schema.strategy_base import StrategyBase
from fedmoe.schema.types import STRICT, NonNegative


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InsightExchangeConfig(StrategyBase):
    """Insight exchange: no weights travel; the MetaLearner answers with guidance.

    Attributes:
        averaging: eta of the average over rounds that clients are scored with: the last
            1 / (eta + 1) or so of the rounds count; `None` scores the model of the last round.
    """

    name: Literal["insight"]
    averaging: NonNegative | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StockConfig(StrategyBase):
    """One of Flower's own message strategies, by its class name.

    Attributes:
        class_name: a name in `flwr.serverapp.strategy`, such as `FedMedian`.
        options: keyword arguments of that class.
    """

    name: Literal["stock"]
    class_name: str
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CustomStrategyConfig(StrategyBase):
    """A strategy of the user's own, registered with `fedmoe.strategies.register`."""

    name: Literal["custom"]
    factory: str
    options: dict[str, Any]


StrategyConfig = Annotated[
    LocalConfig
    | FedAvgConfig
    | FedAvgFineTuneConfig
    | FedProxConfig
    | FedAdamConfig
    | FedYogiConfig
    | FedAdagradConfig
    | ReptileConfig
    | FedEmConfig
    | IfcaConfig
    | FedMoeConfig
    | LocalGlobalConfig
    | DittoConfig
    | FedRepConfig
    | FedProtoConfig
    | InsightExchangeConfig
    | StockConfig
    | CustomStrategyConfig,
    Field(discriminator="name"),
]
