"""Evaluation tells what the router did, and remembers what the next one is compared with."""

from typing import cast

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from fedmoe.clients.experiment import Experiment
from fedmoe.clients.local import evaluate_clients
from fedmoe.clients.requests import EvaluateRequest
from fedmoe.clients.states import ContextStates, StackedStates
from fedmoe.config import load_config
from fedmoe.data import load_federation
from fedmoe.messages import words
from fedmoe.messages.arrays import Records, Stack
from fedmoe.models.router_metrics import TOTALS

WORDS = ["partition.num_clients=6", "partition.min_samples=10"]
EXPERTS, CLASSES = 4, 10


def make_experiment(*more: str) -> Experiment:
    config = load_config([*WORDS, "model=moe", *more])
    return Experiment.of(config, load_federation(config.data, config.partition, config.seed))


def request(experiment: Experiment, clients: list[int], scale: float = 1.0) -> EvaluateRequest:
    params = {name: value[None] * scale for name, value in experiment.initial.items()}
    return EvaluateRequest(clients=np.array(clients), params=params)


def sums_of(records: Records) -> torch.Tensor:
    return cast(Stack, records[words.ROUTING]).tensors[words.SUMS]


def total(name: str) -> int:
    return EXPERTS + TOTALS.index(name)


def test_a_client_tells_the_same_alone_and_in_a_cohort() -> None:
    experiment, states = make_experiment(), StackedStates()
    everyone = list(range(6))
    cohort = sums_of(evaluate_clients(experiment, request(experiment, everyone), states))
    assert cohort.shape == (6, EXPERTS + len(TOTALS) + CLASSES * EXPERTS)
    for client in everyone:
        state = RecordDict()
        alone = ContextStates({client: state})
        asked = request(experiment, [client])
        own = sums_of(evaluate_clients(experiment, asked, alone))
        torch.testing.assert_close(own[0], cohort[client])
        kept = state.array_records[words.ROUTING]["main"].numpy()
        count = experiment.data.parts["test"].counts_K[client]  # type: ignore[union-attr]
        assert (kept[:count] >= 0).all()


def test_accuracy_and_counts_are_those_of_the_scores() -> None:
    experiment = make_experiment()
    records = evaluate_clients(experiment, request(experiment, [4, 0, 2]), StackedStates())
    numbers = cast(dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]], records[words.METRICS])
    sums_CJ = sums_of(records).double().numpy()
    count_C = numbers[words.NUM_EXAMPLES]
    right_C = numbers["test-global-accuracy"] * count_C
    np.testing.assert_allclose(count_C - sums_CJ[:, total("errors")], right_C, atol=1e-4)
    np.testing.assert_allclose(sums_CJ[:, total("answered")], count_C)
    top_k = 2
    np.testing.assert_allclose(sums_CJ[:, :EXPERTS].sum(axis=1), top_k * count_C)
    weight_C = sums_CJ[:, EXPERTS + len(TOTALS) :].sum(axis=1)
    np.testing.assert_allclose(weight_C, count_C, rtol=1e-5)


def test_the_next_evaluation_is_compared_with_the_last_one_of_the_same_client() -> None:
    experiment, states = make_experiment(), StackedStates()
    first = sums_of(evaluate_clients(experiment, request(experiment, [0, 1, 2]), states))
    assert not first[:, total("compared")].any()
    again = sums_of(evaluate_clients(experiment, request(experiment, [3, 1, 2]), states))
    count_K = experiment.data.parts["test"].counts_K  # type: ignore[union-attr]
    assert again[:, total("compared")].tolist() == [0, count_K[1], count_K[2]]
    assert not again[:, total("changed")].any()
    other = request(experiment, [1, 0], scale=-1.0)
    turned = sums_of(evaluate_clients(experiment, other, states))
    assert turned[:, total("compared")].tolist() == [count_K[1], count_K[0]]
    assert turned[:, total("changed")].any()


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_a_model_without_a_router_tells_and_remembers_nothing(model: str) -> None:
    experiment, states = make_experiment(f"model={model}"), StackedStates()
    records = evaluate_clients(experiment, request(experiment, [0, 1]), states)
    assert list(records) == [words.METRICS]
    assert states.everything() == []


def test_clients_whose_data_are_made_on_demand_remember_their_samples() -> None:
    words_of = ["data=synthetic_classes", "data.num_clients=9", "partition=natural", "model=moe",
                "data.samples_per_client=20"]  # fmt: skip
    config = load_config(words_of)
    data = load_federation(config.data, config.partition, config.seed)
    experiment, states = Experiment.of(config, data), StackedStates()
    for compared in (0.0, 4.0):
        found = sums_of(evaluate_clients(experiment, request(experiment, [7, 2]), states))
        assert found[:, total("compared")].tolist() == [compared] * 2
        assert not found[:, total("changed")].any()
