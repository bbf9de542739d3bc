"""Objects that a notebook hands over, as keys of the configuration."""

import re
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pytest
from torch import nn

import fedmoe
from fedmoe import models
from fedmoe.config import load_config
from fedmoe.configuration.dividing import divided_among
from fedmoe.configuration.parts import Parts, composed
from fedmoe.data import Task
from fedmoe.errors import ConfigError
from fedmoe.insight import Memory, MetaLearner
from fedmoe.models import Expert, MixtureOfExperts, Router, build_model, router_table
from fedmoe.schema import (
    InsightExchangeConfig,
    MetaLearnerConfig,
    MoeConfig,
    PrototypesPolicyConfig,
)

ROUTERS = sorted(
    path.stem for path in (Path(fedmoe.__file__).parent / "conf/model/router").glob("*.yaml")
)
TASK = Task(kind="classification", num_features=4, num_outputs=3)


@pytest.mark.parametrize("option", ROUTERS)
def test_every_router_describes_itself_as_it_is_configured(option: str) -> None:
    config = load_config(["model=moe", f"model/router={option}"]).model
    assert isinstance(config, MoeConfig)
    model = build_model(config, TASK, 0)
    assert isinstance(model, MixtureOfExperts)
    assert router_table(model.rule) == asdict(config.router)


def test_the_plain_router_is_a_softmax_over_all() -> None:
    assert router_table(Router(num_experts=3)) == {"name": "softmax", "top_k": 3}


def test_a_router_of_ones_own_cannot_be_written_down() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Mine(Router):
        """As good as any, but no configuration knows it."""

    with pytest.raises(
        ConfigError, match=r"^router: no configuration can describe a Mine; it must"
    ):
        router_table(Mine(num_experts=3))


def test_parts_change_nothing_else() -> None:
    config = load_config(["model=moe", "strategy=insight", "training.epochs=3"])
    assert Parts().written_into(config) is config
    policies = MetaLearnerConfig(prototypes=PrototypesPolicyConfig(strength=0.5, of="cluster"))
    learner = MetaLearner(policies, Memory(7, 2000))
    written = Parts(
        num_clients=6, experts=Expert(0, hidden=[8]).times(2), router=Router(num_experts=2),
        meta_learner=learner,
    ).written_into(config)  # fmt: skip
    expected = [
        "model=moe", "strategy=insight", "training.epochs=3", "partition.num_clients=6",
        "model.num_experts=2", "model.hidden=[8]", "model.router.top_k=2",
        "meta_learner=prototypes", "meta_learner.prototypes.strength=0.5",
        "insight.memory_rounds=7", "insight.memory_bytes=2000",
    ]  # fmt: skip
    assert written == load_config(expected)


def test_a_router_alone_says_how_many_experts() -> None:
    config = composed([], {}, Parts(router=Router(num_experts=3)))
    assert config == load_config(["model=moe", "model.num_experts=3", "model.router.top_k=3"])


def test_what_goes_without_saying_is_weaker_than_what_is_said() -> None:
    learner = Parts(meta_learner=MetaLearner())
    assert isinstance(composed([], {}, learner).strategy, InsightExchangeConfig)
    for config in (
        composed(["strategy=local"], {}, learner), composed([], {"strategy": "local"}, learner)
    ):  # fmt: skip
        assert config == load_config(["strategy=local", "meta_learner=[prior,prototypes]"])
    words = ["strategy=insight", "insight.min_count=9"]
    assert composed(words, {}, learner).insight.min_count == 9


def layer(num_features: int, num_outputs: int, bias: bool = True) -> nn.Module:
    return nn.Linear(num_features, num_outputs, bias=bias)


@pytest.mark.parametrize(
    ("module", "name"), [(layer, "layer"), (partial(layer, bias=False), "expert")]
)
def test_a_module_of_ones_own_is_registered(
    module: models.expert.ModuleFactory, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.REGISTRY, "factories", {})
    config = composed([], {}, Parts(experts=Expert(0, module=module).times(2))).model
    assert isinstance(config, MoeConfig)
    assert (config.expert, config.hidden) == (name, ())
    built = build_model(config, TASK, 0)
    assert isinstance(built, MixtureOfExperts)
    assert len(list(built.expert(1).parameters())) == (2 if module is layer else 1)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["partition=iid"], "partition"),
        (["data=synthetic_linear", "partition=natural", "model=linear"], "data"),
        (["data=synthetic_linear", "partition=iid", "model=linear"], "partition"),
    ],
    ids=["real", "natural", "made-up"],
)
def test_the_number_of_clients_is_the_partitions_or_the_datas(words: list[str], key: str) -> None:
    divided = divided_among(load_config(words), 7)
    assert divided == load_config([*words, f"{key}.num_clients=7"])


def test_natural_clients_of_real_data_are_as_many_as_there_are() -> None:
    config = load_config(["+experiment=flights"])
    assert divided_among(config, 7) is config


@pytest.mark.parametrize("number", [0, -3, 2.5, "5", True])
def test_a_number_of_clients_must_be_one(number: int) -> None:
    with pytest.raises(ConfigError, match=re.escape("partition.num_clients=")):
        divided_among(load_config(), number)
