"""Which strategy a configuration names, and what it is built with."""

from collections.abc import Callable
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedmoe.clients.algorithms import local_algorithm
from fedmoe.data.federation import Task
from fedmoe.errors import ConfigError
from fedmoe.insight import Memory, MetaLearner
from fedmoe.insight.payloads import Facts, Payloads
from fedmoe.insight.policies import POLICIES, Setting
from fedmoe.messages.words import LOSS
from fedmoe.registry import Registry
from fedmoe.schema import (
    CustomStrategyConfig,
    DittoConfig,
    ExperimentConfig,
    FedAdagradConfig,
    FedAdamConfig,
    FedAvgConfig,
    FedAvgFineTuneConfig,
    FedEmConfig,
    FedMoeConfig,
    FedProtoConfig,
    FedProxConfig,
    FedRepConfig,
    FedYogiConfig,
    IfcaConfig,
    InsightExchangeConfig,
    LocalConfig,
    LocalGlobalConfig,
    ReptileConfig,
    StockConfig,
)
from fedmoe.strategies.base import ONE_IS_ENOUGH, StackedFedAvg
from fedmoe.strategies.ditto import Ditto
from fedmoe.strategies.exchange import Exchange
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
from fedmoe.strategies.fitting import check_policies
from fedmoe.strategies.ifca import Ifca
from fedmoe.strategies.insight import InsightExchange, Insights, with_insights
from fedmoe.strategies.local import Local
from fedmoe.strategies.local_global import LocalGlobal
from fedmoe.strategies.reptile import Reptile
from fedmoe.strategies.server_options import server_options

Factory = Callable[..., Strategy]
REGISTRY = Registry("strategy.factory", "strategy", "fedmoe.strategies.register")


def register(name: str) -> Callable[[Factory], Factory]:
    """Make a strategy of your own available as `strategy=custom strategy.factory=NAME`.

    The factory is called with `strategy.options`, and with `seed` and `fraction_train` if it
    takes them; it returns a Flower message strategy, best a subclass of `StackedFedAvg`.
    """
    return REGISTRY.add(name)


def build_strategy(
    config: ExperimentConfig, task: Task, meta_learner: MetaLearner | None = None
) -> Strategy:
    """The strategy that the configuration names.

    Args:
        config: the experiment.
        task: what is to be learnt.
        meta_learner: of insight exchange; by default one as configured.

    Raises:
        ConfigError: an unknown class or factory, or options that it does not take.
    """
    chosen = config.strategy
    common: dict[str, Any] = {"seed": config.seed, "fraction_train": chosen.fraction_train}
    tells = meta_learner is not None or exchanges_insights(config)
    if isinstance(chosen, StockConfig | CustomStrategyConfig):
        return _foreign(config, common, tells)
    cls = _OURS[type(chosen)]
    if tells:
        if not issubclass(cls, Insights):
            cls = with_insights(cls)
        common["exchange"] = _exchange(config, task, meta_learner)
    return cls(**server_options(config, task), **common)


def exchanges_insights(config: ExperimentConfig) -> bool:
    """Whether clients tell insights: for their strategy, for a policy, or for the record."""
    learner = config.meta_learner
    policies = [name for name in POLICIES if getattr(learner, name) is not None]
    is_exchange = isinstance(config.strategy, InsightExchangeConfig)
    return bool(is_exchange or policies or config.insight.payloads)


def _exchange(config: ExperimentConfig, task: Task, meta_learner: MetaLearner | None) -> Exchange:
    rules = config.insight
    if meta_learner is None:
        memory = Memory(rules.memory_rounds, rules.memory_bytes)
        meta_learner = MetaLearner(config.meta_learner, memory)
    model = local_algorithm(config.strategy).build(config.model, task, config.seed)
    facts = Facts.of(config, task, model)
    check_policies(config, task, model)
    meta_learner.prepare(
        Setting(
            seed=config.seed,
            learning_rate=config.training.learning_rate,
            momentum=config.training.momentum,
            keeps_momentum=not config.training.reset_optimizer,
            num_experts=facts.num_experts,
            rank=rules.rank,
            batch_size=config.training.batch_size,
        )
    )
    return Exchange(meta_learner, Payloads(facts), rules.payloads)


def _foreign(config: ExperimentConfig, common: dict[str, Any], tells: bool) -> Strategy:
    """One of Flower's own strategies, or a user's, which ask for no insights."""
    chosen = config.strategy
    if tells:
        raise ConfigError(
            f"strategy={chosen.name}: meta_learner and insight.payloads go with fedmoe's own "
            "strategies; a strategy of your own may derive from fedmoe.strategies.Insights"
        )
    if isinstance(chosen, StockConfig):
        # Asking for two nodes, as Flower's defaults do, waits for ever where there is one.
        fraction = common["fraction_train"]
        extra = {**ONE_IS_ENOUGH, "fraction_train": fraction, "train_loss_key": LOSS}
        return _construct(_stock_class(chosen.class_name), chosen.options, extra)
    assert isinstance(chosen, CustomStrategyConfig)
    return _construct(REGISTRY.find(chosen.factory), chosen.options, common)


# What a strategy's file calls for; the client's side of each is in `fedmoe.clients.algorithms`.
_OURS: dict[type, type[StackedFedAvg]] = {
    LocalConfig: Local,
    FedAvgConfig: FedAvg,
    FedAvgFineTuneConfig: FedAvgFineTune,
    FedProxConfig: FedProx,
    FedAdamConfig: FedAdam,
    FedYogiConfig: FedYogi,
    FedAdagradConfig: FedAdagrad,
    ReptileConfig: Reptile,
    FedEmConfig: FedEm,
    FedMoeConfig: FedMoE,
    IfcaConfig: Ifca,
    LocalGlobalConfig: LocalGlobal,
    DittoConfig: Ditto,
    FedRepConfig: FedRep,
    FedProtoConfig: FedProto,
    InsightExchangeConfig: InsightExchange,
}


def _stock_class(name: str) -> Factory:
    """A strategy of Flower's that averages weights.

    Its wrappers (differential privacy) take another strategy, and its FedXgb ones take trees.
    """
    known = {
        one: cls
        for one, cls in vars(flower).items()
        if isinstance(cls, type) and issubclass(cls, flower.FedAvg) and "Xgb" not in one
    }
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        allowed = ", ".join(sorted(known))
        raise ConfigError(f"strategy.class_name={name}: no such strategy; {hint}Allowed: {allowed}")
    return known[name]


def _construct(factory: Factory, options: dict[str, Any], extra: dict[str, Any]) -> Strategy:
    """Build a strategy from what the user gave, and those of our extras that it can take."""
    known = signature(factory).parameters
    takes_all = any(p.kind is Parameter.VAR_KEYWORD for p in known.values())
    taken = {name: value for name, value in extra.items() if takes_all or name in known}
    try:
        return factory(**{**taken, **options})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"strategy.options={options}: {error}") from error
