"""Policies on real clients: what they are told, what they do, and who is asked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message

from fedmoe.clients import answer, load_experiment
from fedmoe.clients.local import train_clients
from fedmoe.clients.requests import Settings, TrainRequest
from fedmoe.clients.states import StackedStates
from fedmoe.config import load_config, to_json
from fedmoe.insight import Guidance
from fedmoe.messages.arrays import Stack, to_record
from fedmoe.rounds import RoundLoop, RoundRecord
from fedmoe.schema import ExperimentConfig
from fedmoe.simulations import ContextGrid, InProcessGrid
from fedmoe.standing import Standing
from fedmoe.strategies import build_strategy

QUIET = ["tracking.plots=false", "tracking.progress=none", "tracking.log_level=ERROR"]
SMALL = [
    *QUIET, "data=synthetic_mixture", "data.num_clients=6", "data.samples_per_client=40",
    "data.num_features=4", "partition=natural", "model=mlp", "model.hidden=[5]",
    "training.batch_size=8", "rounds=4",
]  # fmt: skip
ALL = ["meta_learner=[selection,step_size,hyperparameters]"]
HALF = ["strategy.fraction_train=0.5"]


def one_by_one(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
    return [answer([m], [c])[0] for m, c in zip(messages, contexts, strict=True)]


def run(config: ExperimentConfig, grid: Any = None) -> tuple[dict[str, Any], list[RoundRecord]]:
    """The final weights by name, and a record a round."""
    experiment = load_experiment(to_json(config))
    grid = grid or InProcessGrid(experiment)
    records: list[RoundRecord] = []
    loop = RoundLoop(
        config=config, strategy=build_strategy(config, experiment.data.task), grid=grid,
        standing=Standing(to_record(experiment.shared)), client_of=grid.client_id,
        on_round=records.append,
    )  # fmt: skip
    assert loop.run() == "completed"
    return {name: array.numpy() for name, array in loop.standing.arrays.items()}, records


def decisions(records: list[RoundRecord], policy: str) -> list[dict[str, Any]]:
    return [(one.findings or {})["decisions"][policy] for one in records]


def asked(records: list[RoundRecord]) -> list[list[int]]:
    return [one.insights["client_id"] for one in records]


@pytest.mark.parametrize(
    "strategy",
    ["local", "fedavg", "reptile", "fedyogi", "fedadagrad", "fedprox", "ditto", "fedrep",
     "fedproto", "fedem", "ifca", "local_global", "fedmoe", "insight"],
)  # fmt: skip
def test_any_policy_goes_with_any_strategy(strategy: str) -> None:
    config = load_config([*SMALL, *HALF, *ALL, f"strategy={strategy}", "rounds=2"])
    _, records = run(config)
    for policy in ("selection", "step_size", "hyperparameters"):
        assert all(one["reason"] for one in decisions(records, policy))


@pytest.mark.parametrize("per", ["federation", "client"])
def test_one_by_one_is_as_in_cohorts(per: str) -> None:
    words = [f"meta_learner.step_size.per={per}", "meta_learner.hyperparameters.epochs=[1,3]"]
    config = load_config([*SMALL, *HALF, *ALL, *words])
    alone, there = run(config, ContextGrid(to_json(config), 6, one_by_one))
    together, here = run(config)
    for name, array in together.items():
        np.testing.assert_allclose(alone[name], array, atol=1e-5)
    assert asked(there) == asked(here)
    for mine, theirs in zip(there, here, strict=True):
        assert mine.insights["epochs_trained"] == theirs.insights["epochs_trained"]
        assert mine.insights["distance"] == pytest.approx(theirs.insights["distance"], rel=1e-3)


def train(words: Sequence[str], numbers: Sequence[dict[str, float]]) -> dict[str, Any]:
    """What clients 0, 1, ... reply that are told some numbers."""
    config = load_config([*SMALL, *words])
    experiment = load_experiment(to_json(config))
    request = TrainRequest(
        clients=np.arange(len(numbers)),
        settings=Settings(round=1, payloads=()),
        params={name: value[None] for name, value in experiment.shared.items()},
        guidance=[Guidance({}, one) for one in numbers],
        guidance_of=np.arange(len(numbers)),
    )
    return dict(train_clients(experiment, request, StackedStates()))


def weights(records: dict[str, Any], client: int) -> dict[str, torch.Tensor]:
    stack = records["arrays"]
    assert isinstance(stack, Stack)
    return {name: value[client] for name, value in stack.tensors.items()}


def test_clients_train_as_they_are_told() -> None:
    """Each as if its own rate and epochs were configured."""
    told = [{"learning_rate": 0.5, "epochs": 3.0}, {"learning_rate": 2.0, "epochs": 1.0}]
    found = train([], told)
    for client, one in enumerate(told):
        words = [
            f"training.learning_rate={0.1 * one['learning_rate']}",
            f"training.epochs={int(one['epochs'])}",
        ]
        expected = weights(train(words, [{}, {}]), client)
        for name, value in weights(found, client).items():
            torch.testing.assert_close(value, expected[name])
    assert found["insight"]["epochs_trained"].tolist() == [3, 1]
    samples = found["insight"]["num_examples"]
    np.testing.assert_array_equal(found["insight"]["steps"], [3, 1] * -(-samples // 8))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate=-1.0: must be a finite number above 0"),
        ({"learning_rate": float("inf")}, "must be a finite number above 0"),
        ({"epochs": 1.5}, "epochs=1.5: must be a whole number above 0"),
        ({"momentum": 0.5}, "unknown"),
    ],
)
def test_clients_refuse_nonsense(numbers: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train([], [numbers])


def test_factors_of_two_policies_multiply() -> None:
    words = ["meta_learner.hyperparameters.learning_rates=[0.5]"]
    config = load_config([*SMALL, *ALL, *words])
    strategy: Any = build_strategy(config, load_experiment(to_json(config)).data.task)
    grid = InProcessGrid(load_experiment(to_json(config)))
    record = to_record(load_experiment(to_json(config)).shared)
    learner = strategy.meta_learner
    assert learner.guidance(0).numbers == {"learning_rate": 0.5}
    sent = strategy.configure_train(1, record, ConfigRecord(), grid)
    strategy.aggregate_train(1, grid.send_and_receive(sent))
    factor = learner.policies[0].advise(0).numbers["learning_rate"]
    assert learner.guidance(0).numbers == {"learning_rate": 0.5 * factor}
    assert factor != 1.0


def test_uniform_selection_is_that_of_the_strategy() -> None:
    config = load_config([*SMALL, *HALF])
    uniform = ["meta_learner=selection", "meta_learner.selection.kind=uniform"]
    plain, _ = run(config)
    control, _ = run(load_config([*SMALL, *HALF, *uniform]))
    for name, array in plain.items():
        np.testing.assert_array_equal(control[name], array)


@pytest.mark.parametrize("kind", ["oort", "power_of_choice"])
def test_selection_asks_as_many_as_configured_and_everybody_in_turn(kind: str) -> None:
    words = [f"meta_learner.selection.kind={kind}", "rounds=12", "meta_learner=selection"]
    _, records = run(load_config([*SMALL, *HALF, *words]))
    assert all(len(set(ids)) == 3 for ids in asked(records))
    assert set().union(*map(set, asked(records))) == set(range(6))
    uniform = run(load_config([*SMALL, *HALF, "insight.payloads=[scalars]", "rounds=12"]))[1]
    assert asked(records) != asked(uniform)


def test_where_everybody_trains_there_is_nothing_to_select() -> None:
    _, records = run(load_config([*SMALL, "meta_learner=selection"]))
    assert asked(records) == [list(range(6))] * 4
    assert decisions(records, "selection") == [{}] * 4


def test_clients_that_nobody_knows_draw_each_its_own_configuration() -> None:
    words = ["meta_learner=hyperparameters", "meta_learner.hyperparameters.epochs=[1,2,3,4]"]
    _, records = run(load_config([*SMALL, *words, "rounds=1"]))
    assert len(set(records[0].insights["epochs_trained"])) > 1


def test_who_diverges_is_held_against_what_it_drew() -> None:
    words = [
        "meta_learner=hyperparameters", "meta_learner.hyperparameters.learning_rates=[1.0,1e30]",
        "rounds=3",
    ]  # fmt: skip
    _, records = run(load_config([*SMALL, *words]))
    assert records[0].metrics["train"]["failures"] > 0
    likeliest = decisions(records, "hyperparameters")[-1]["probabilities"][0]
    assert likeliest["learning_rate"] == 1.0 and likeliest["probability"] > 0.5
