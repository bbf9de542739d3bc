"""What model payloads are made of at the clients, for each kind of strategy, by plain loops."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmoe.clients import Experiment, load_experiment
from fedmoe.clients.local import train_clients
from fedmoe.clients.requests import Settings, TrainRequest
from fedmoe.clients.states import StackedStates
from fedmoe.config import load_config, to_json
from fedmoe.insight.payloads.gradient_sketch import count_sketch
from fedmoe.messages.arrays import Stack
from fedmoe.models import MixtureOfExperts

SMALL = [
    "partition.num_clients=4", "training.epochs=1", "model.hidden=[3]", "insight.sketch_size=40",
    "insight.public_samples=5",
]  # fmt: skip
MOE = ["model=moe", "model.num_experts=4", *SMALL]
CLIENTS = np.array([2, 0, 3])
Told = dict[str, Tensor]


def experiment(words: list[str]) -> Experiment:
    return load_experiment(to_json(load_config(words)))


def train(made: Experiment, payload: str, held: Tensor | None = None) -> tuple[Told, Told]:
    """What the clients tell of a round from the initial model: the payload, and their models."""
    params = {name: value[None] for name, value in made.shared.items()}
    if held is not None:
        params = {n: torch.stack([value[0, own] for own in held]) for n, value in params.items()}
    request = TrainRequest(
        clients=CLIENTS,
        settings=Settings(round=1, payloads=(payload,)),
        params=params,
        experts=held,
    )
    records = train_clients(made, request, StackedStates())
    said, models = records["payload"], records["arrays"]
    assert isinstance(said, Stack) and isinstance(models, Stack)
    return dict(said.tensors), dict(models.tensors)


def sketched(made: Experiment, changes: Mapping[str, Tensor]) -> Tensor:
    flat = torch.cat([changes[name].flatten(1) for name in made.shared], dim=1)
    sketch = count_sketch(flat, 40, made.config.seed)
    unit: Tensor = sketch / sketch.norm(dim=1, keepdim=True)
    return unit


@pytest.mark.parametrize(
    "words",
    [
        ["strategy=fedavg", "model=mlp", *SMALL],
        ["strategy=fedrep", "model=mlp", *SMALL],
        ["strategy=ditto", "model=mlp", *SMALL],
        ["strategy=local_global", "model=mlp", *SMALL],
        ["strategy=fedavg", *MOE],
    ],
)
def test_a_sketch_is_of_what_travels_and_has_changed(words: list[str]) -> None:
    made = experiment(words)
    said, models = train(made, "gradient_sketch")
    changes = {name: models[name] - made.shared[name] for name in made.shared}
    torch.testing.assert_close(said["gradient_sketch"], sketched(made, changes))


HELD = torch.tensor([[0, 2], [1, 2], [0, 3]])


def test_a_sketch_of_some_experts_leaves_the_others_still() -> None:
    made = experiment(["strategy=fedavg", *MOE])
    said, models = train(made, "gradient_sketch", HELD)
    changes = {n: torch.zeros(len(CLIENTS), *value.shape) for n, value in made.shared.items()}
    for client, own in enumerate(HELD.tolist()):
        for name, value in made.shared.items():
            for place, expert in enumerate(own):
                changes[name][client, expert] = models[name][client, place] - value[expert]
    torch.testing.assert_close(said["gradient_sketch"], sketched(made, changes))


def test_a_sketch_of_the_one_model_that_a_client_chose_is_at_its_place() -> None:
    made = experiment(["strategy=ifca", "model=mlp", "strategy.num_clusters=3", *SMALL])
    params = {name: value[None] for name, value in made.shared.items()}
    settings = Settings(round=1, payloads=("gradient_sketch", "expert_load"))
    request = TrainRequest(clients=CLIENTS, settings=settings, params=params)
    records = train_clients(made, request, StackedStates())
    said, models, chosen = (records[key] for key in ("payload", "arrays", "experts"))
    assert isinstance(said, Stack) and isinstance(models, Stack) and isinstance(chosen, Stack)
    assert len(set(chosen.tensors["index"].flatten().tolist())) > 1
    changes = {n: torch.zeros(len(CLIENTS), *value.shape) for n, value in made.shared.items()}
    for client, expert in enumerate(chosen.tensors["index"].flatten().tolist()):
        for name, value in made.shared.items():
            changes[name][client, expert] = models.tensors[name][client, 0] - value[expert]
        expected = [float(expert == place) for place in range(3)]
        assert said.tensors["expert_load"][client].tolist() == expected
    torch.testing.assert_close(said.tensors["gradient_sketch"], sketched(made, changes))
    distances = records["insight"]["distance"]  # type: ignore[index]
    for client, distance in enumerate(distances):
        squares = sum(float(change[client].square().sum()) for change in changes.values())
        assert distance == pytest.approx(squares**0.5, rel=1e-5)


@pytest.mark.parametrize("held", [None, HELD])
def test_the_load_is_counted_over_each_client_s_samples(held: Tensor | None) -> None:
    made = experiment(["strategy=fedavg", *MOE])
    said, models = train(made, "expert_load", held)
    for row, client in enumerate(CLIENTS.tolist()):
        x_nD, _ = made.data.client(client, "train")
        own = range(4) if held is None else held[row].tolist()
        load, importance = torch.zeros(4), torch.zeros(4)
        for x in torch.from_numpy(x_nD):
            logits = models["router.weight"][row] @ x + models["router.bias"][row]
            probs = logits.softmax(dim=0)
            model = made.model
            assert isinstance(model, MixtureOfExperts)
            chosen = logits.argsort(descending=True)[: min(int(model.rule.active), len(own))]
            for place, expert in enumerate(own):
                importance[expert] += probs[place] / len(x_nD)
                if place in chosen:
                    load[expert] += 1 / len(chosen) / len(x_nD)
        torch.testing.assert_close(said["expert_load"][row], load)
        torch.testing.assert_close(said["expert_importance"][row], importance)


@pytest.mark.parametrize(
    "words",
    [["strategy=fedavg", "model=mlp", *SMALL], ["strategy=fedavg", "model=linear", *SMALL[:2]]],
)
def test_answers_are_each_model_s_own_on_the_same_inputs(words: list[str]) -> None:
    made = experiment([*words, "training.cohort_size=2", "insight.public_samples=5"])
    said, models = train(made, "logits")
    for row in range(len(CLIENTS)):
        own = {name: value[row] for name, value in models.items()}
        for place, x in enumerate(made.public_SD):
            y = torch.func.functional_call(made.model, own, (x,)).y
            torch.testing.assert_close(said["logits"][row, place], y.log_softmax(dim=0))


def test_a_payload_that_does_not_fit_is_refused() -> None:
    made: Any = experiment(["strategy=fedavg", "model=mlp", *SMALL])
    with pytest.raises(ValueError, match="payload 'expert_load' is unknown or does not fit"):
        train(made, "expert_load")
