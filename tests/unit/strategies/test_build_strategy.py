"""Strategies by name: what is refused, and how it is said."""

from typing import Any

import pytest
from flwr.serverapp import strategy as flower

from fedmoe.config import load_config
from fedmoe.data import Task
from fedmoe.errors import ConfigError
from fedmoe.insight import MetaLearner
from fedmoe.strategies import Insights, build_strategy, register

TASK = Task(kind="classification", num_features=3, num_outputs=2)


def build(class_name: str, **options: Any) -> flower.Strategy:
    config = load_config(
        ["strategy=stock"], strategy={"class_name": class_name, "options": options}
    )
    return build_strategy(config, TASK)


@pytest.mark.parametrize(
    "name",
    ["FedAvg", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi", "FedMedian", "FedProx", "Krum",
     "MultiKrum", "Bulyan", "QFedAvg", "FedTrimmedAvg"],
)  # fmt: skip
def test_flowers_strategies_that_average_weights_are_there(name: str) -> None:
    options = {"QFedAvg": {"client_learning_rate": 0.1}}.get(name, {})
    strategy = build(name, **options)
    assert type(strategy) is getattr(flower, name)
    assert getattr(strategy, "min_available_nodes") == 1  # noqa: B009 - not in every stub


def test_qfedavg_finds_our_loss() -> None:
    assert getattr(build("QFedAvg", client_learning_rate=0.1), "train_loss_key") == "loss"  # noqa: B009


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("FedMedain", {}, "did you mean FedMedian"),
        ("FedXgbBagging", {}, "no such strategy"),
        ("DifferentialPrivacyServerSideFixedClipping", {}, "no such strategy"),
        ("Strategy", {}, "no such strategy"),
        ("FedTrimmedAvg", {"beta": 2.0}, r"strategy.options=\{'beta': 2.0\}"),
        ("FedAvg", {"foo": 1}, r"strategy.options=\{'foo': 1\}: .*foo"),
    ],
)
def test_what_cannot_be_built_is_one_clear_error(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, **options)


def test_a_custom_factory_gets_only_what_it_takes() -> None:
    @register("plain-flower")
    def plain(fraction_train: float) -> flower.Strategy:
        return flower.FedAvg(fraction_train=fraction_train)

    config = load_config(
        ["strategy=custom", "strategy.factory=plain-flower", "strategy.fraction_train=0.5"]
    )
    strategy = build_strategy(config, TASK)
    assert isinstance(strategy, flower.FedAvg) and strategy.fraction_train == 0.5


@pytest.mark.parametrize("name", ["fedavg", "ifca", "insight"])
def test_a_learner_that_is_handed_in_is_used_whether_or_not_insights_are_configured(
    name: str,
) -> None:
    learner = MetaLearner()
    config = load_config([f"strategy={name}", "meta_learner=none"])
    strategy = build_strategy(config, TASK, learner)
    assert isinstance(strategy, Insights) and strategy.meta_learner is learner
    assert strategy.exchange.wanted == ("prototypes", "traces")


def test_a_learner_that_cannot_be_used_is_refused() -> None:
    config = load_config(["strategy=stock", "strategy.class_name=FedAvg"])
    with pytest.raises(ConfigError, match="strategy=stock: meta_learner and insight"):
        build_strategy(config, TASK, MetaLearner())
