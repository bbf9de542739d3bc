"""Insight exchange scores clients with an average of their models over the rounds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from fedmoe.clients import load_experiment
from fedmoe.clients.job import Job
from fedmoe.clients.local import evaluate_clients, train_clients
from fedmoe.clients.requests import EvaluateRequest, Settings, TrainRequest
from fedmoe.clients.states import StackedStates
from fedmoe.config import load_config, to_json
from fedmoe.models import Parameters

WORDS = ["strategy=insight", "model=linear", "partition.num_clients=5", "meta_learner=none"]
CLIENTS = np.arange(5)


def models(words: Sequence[str], taking_part: Sequence[Sequence[int]]) -> list[Parameters]:
    """What each client would be scored with after each round."""
    experiment = load_experiment(to_json(load_config([*WORDS, *words])))
    states, found = StackedStates(), []
    for round, clients in enumerate(taking_part, start=1):
        train_clients(
            experiment, TrainRequest(clients=np.array(clients), settings=Settings(round=round)),
            states,
        )  # fmt: skip
        job = Job(experiment, EvaluateRequest(clients=CLIENTS), states)
        own = experiment.algorithm.personal_model(job, job.start())
        assert own is not None
        found.append({name: value.expand(5, *value.shape[1:]) for name, value in own.items()})
    return found


@pytest.mark.parametrize("eta", [0.0, 2.5])
def test_it_is_that_of_polynomial_decay_over_the_rounds_that_a_client_trained_in(
    eta: float,
) -> None:
    rounds = [[0, 1, 2, 4], [1, 2], [0, 2, 4], [0, 1, 2, 4]]
    last, averaged = (
        models(["strategy.averaging=null"], rounds),
        models([f"strategy.averaging={eta}"], rounds),
    )
    mean: dict[tuple[int, str], torch.Tensor] = {}
    times = dict.fromkeys(range(5), 0)
    for clients, now, found in zip(rounds, last, averaged, strict=True):
        for client in clients:
            times[client] += 1
            share = (eta + 1) / (times[client] + eta)
            for name, value in now.items():
                before = mean.get((client, name), torch.zeros(()))
                mean[client, name] = (1 - share) * before + share * value[client]
        for name, value in found.items():
            for client in range(5):
                expected = mean.get((client, name), now[name][client])
                torch.testing.assert_close(value[client], expected)
    assert not torch.equal(averaged[-1]["weight"][0], last[-1]["weight"][0])


def test_training_does_not_see_it() -> None:
    experiments = [
        load_experiment(to_json(load_config([*WORDS, f"strategy.averaging={eta}"])))
        for eta in ("null", "6")
    ]
    losses: list[Any] = []
    for experiment in experiments:
        states = StackedStates()
        for round in (1, 2, 3):
            request = TrainRequest(clients=CLIENTS, settings=Settings(round=round))
            records = train_clients(experiment, request, states)
        losses.append(records["metrics"]["loss"])  # type: ignore[index]
        evaluate_clients(experiment, EvaluateRequest(clients=CLIENTS), states)
    np.testing.assert_array_equal(losses[0], losses[1])
