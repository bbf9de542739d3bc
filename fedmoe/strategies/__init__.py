"""Strategies: one algorithm a file, chosen by the configuration."""

from collections.abc import Callable
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedmoe.data.federation import Task
from fedmoe.errors import ConfigError
from fedmoe.insight import Memory, MetaLearner
from fedmoe.schema import (
    CustomStrategyConfig,
    ExperimentConfig,
    FedAdamConfig,
    FedProxConfig,
    InsightConfig,
    LocalConfig,
    StockConfig,
)
from fedmoe.strategies.base import ONE_IS_ENOUGH, StackedFedAvg
from fedmoe.strategies.fedadam import FedAdam
from fedmoe.strategies.fedavg import FedAvg
from fedmoe.strategies.fedprox import FedProx
from fedmoe.strategies.insight import InsightExchange
from fedmoe.strategies.local import Local

__all__ = [
    "FedAdam",
    "FedAvg",
    "FedProx",
    "InsightExchange",
    "Local",
    "StackedFedAvg",
    "build_strategy",
    "register",
]

Factory = Callable[..., Strategy]
_FACTORIES: dict[str, Factory] = {}


def register(name: str) -> Callable[[Factory], Factory]:
    """Make a strategy of your own available as `strategy=custom strategy.factory=NAME`.

    The factory is called as `factory(seed=..., fraction_train=..., **strategy.options)` and
    returns a Flower message strategy, best a subclass of `StackedFedAvg`.
    """

    def remember(factory: Factory) -> Factory:
        _FACTORIES[name] = factory
        return factory

    return remember


def build_strategy(config: ExperimentConfig, task: Task) -> Strategy:
    """The strategy that the configuration names.

    Raises:
        ConfigError: an unknown class or factory, or options that it does not take.
    """
    chosen = config.strategy
    common: dict[str, Any] = {"seed": config.seed, "fraction_train": chosen.fraction_train}
    if isinstance(chosen, InsightConfig):
        learner = MetaLearner(config.meta_learner, Memory(chosen.memory_rounds))
        return InsightExchange(chosen, learner, task, seed=config.seed)
    if isinstance(chosen, StockConfig):
        stock = _stock_class(chosen.class_name)
        options: dict[str, Any] = {}
        if isinstance(stock, type) and issubclass(stock, flower.FedAvg):
            # Asking for two nodes, as Flower's defaults do, waits for ever where there is one.
            options = {**ONE_IS_ENOUGH, "fraction_train": chosen.fraction_train}
        return _construct(stock, {**options, **chosen.options})
    if isinstance(chosen, CustomStrategyConfig):
        return _construct(_registered(chosen.factory), {**common, **chosen.options})
    if isinstance(chosen, LocalConfig):
        return Local(**common)
    if isinstance(chosen, FedProxConfig):
        return FedProx(proximal_mu=chosen.proximal_mu, **common)
    if isinstance(chosen, FedAdamConfig):
        return FedAdam(
            eta=chosen.eta, beta_1=chosen.beta_1, beta_2=chosen.beta_2, tau=chosen.tau, **common
        )
    return FedAvg(**common)


def _stock_class(name: str) -> Factory:
    known = sorted(set(flower.__all__) - {"Result", "Strategy"})
    if name not in known:
        raise ConfigError(f"strategy.class_name={name}: no such strategy; Flower has {known}")
    return getattr(flower, name)  # type: ignore[no-any-return]


def _registered(name: str) -> Factory:
    if name not in _FACTORIES:
        known = ", ".join(sorted(_FACTORIES)) or "none (see fedmoe.strategies.register)"
        raise ConfigError(f"strategy.factory={name}: no such strategy; registered: {known}")
    return _FACTORIES[name]


def _construct(factory: Factory, options: dict[str, Any]) -> Strategy:
    try:
        return factory(**options)
    except TypeError as error:
        raise ConfigError(f"strategy.options={options}: {error}") from error
