# The yardstick of benchmarks/ceiling.py has to do the work that train_cohort does.
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.ceiling import Ceiling
from benchmarks.ceiling_steps import (
    BALANCE,
    EXPERT_HIDDEN,
    EXPERTS,
    HIDDEN,
    TOP_K,
    initial_weights,
)
from fedmoe.data import Task
from fedmoe.data.federation import Ints
from fedmoe.models import Linear, MixtureOfExperts, Mlp, Parameters, RouterLosses
from fedmoe.models.expert import Expert
from fedmoe.models.routers import SoftmaxRouter
from fedmoe.schema import MoeConfig, SoftmaxRouterConfig, TrainingConfig
from fedmoe.training.batches import make_schedule
from fedmoe.training.cohort import Cohort, train_cohort
from fedmoe.training.pool import Pool

D, OUT, RATE, BATCH = 6, 4, 0.3, 8
COUNTS = [5, 19, 8, 30, 1, 16, 8]
CLIENTS = np.array([5, 1, 0, 3, 4, 6])  # client 2 stays at home


def data() -> tuple[Any, Any, list[Ints]]:
    random = np.random.default_rng(0)
    x_ND = random.normal(size=(sum(COUNTS), D)).astype(np.float32)
    y_N = random.integers(0, OUT, len(x_ND))
    ends = np.cumsum(COUNTS)
    scattered = random.permutation(len(x_ND))
    return x_ND, y_N, [scattered[e - n : e] for e, n in zip(ends, COUNTS, strict=True)]


def model_like(name: str) -> Any:
    if name == "linear":
        return Linear(D, OUT)
    if name == "mlp":
        return Mlp(D, (HIDDEN,), OUT)
    return MixtureOfExperts(
        D, OUT, experts=Expert(0, hidden=(EXPERT_HIDDEN,)).times(EXPERTS),
        router=SoftmaxRouter(num_experts=EXPERTS, top_k=TOP_K),
    )  # fmt: skip


def cohort_of(rows: list[Ints], weights: Parameters) -> Cohort:
    count_C = np.array(COUNTS)[CLIENTS]
    rows_Cn = np.zeros((len(CLIENTS), count_C.max()), dtype=np.int64)
    for row, client in zip(rows_Cn, CLIENTS, strict=True):
        row[: COUNTS[client]] = rows[client]
    return Cohort(
        client_C=CLIENTS,
        rows_Cn=rows_Cn,
        count_C=count_C,
        params={name: v.expand(len(CLIENTS), *v.shape) for name, v in weights.items()},
        seed=3,
        round=2,
        epochs_C=np.ones_like(CLIENTS),
        lr_C=torch.full((len(CLIENTS),), RATE),
    )


def order_of(cohort: Cohort) -> list[Ints]:
    """The order in which each client of the cohort uses its samples."""
    orders = []
    for place in range(len(cohort.client_C)):
        schedule = make_schedule(
            rows_Cn=cohort.rows_Cn[place : place + 1], count_C=cohort.count_C[place : place + 1],
            client_C=cohort.client_C[place : place + 1], epochs_C=np.array([1]),
            batch_size=BATCH, seed=cohort.seed, round=cohort.round,
        )  # fmt: skip
        sizes = schedule.samples_SC[:, 0]
        batches = [rows[0, :size] for rows, size in zip(schedule.rows_SCB, sizes, strict=True)]
        orders.append(np.concatenate(batches))
    return orders


@pytest.mark.parametrize("chunk", [2, 50])
@pytest.mark.parametrize("name", ["linear", "mlp", "moe"])
def test_a_round_of_the_yardstick_is_training_and_averaging(name: str, chunk: int) -> None:
    x_ND, y_N, rows = data()
    yardstick = Ceiling(name, x_ND, y_N, rows, batch_size=BATCH, learning_rate=RATE, chunk=chunk)
    weights = {key: value.clone() for key, value in yardstick.weights.items()}
    model, cohort = model_like(name), cohort_of(rows, weights)
    yardstick.round(CLIENTS, order_of(cohort))

    config = TrainingConfig(
        optimizer="sgd", learning_rate=RATE, momentum=0.0, weight_decay=0.0, epochs=1,
        batch_size=BATCH, reset_optimizer=True, cohort_size=100, num_threads=1, device="cpu",
    )  # fmt: skip
    task = Task(kind="classification", num_features=D, num_outputs=OUT)
    losses = RouterLosses(balance=BALANCE if name == "moe" else 0.0)
    trained = train_cohort(model, task, Pool.of(x_ND, y_N), config, cohort, losses)
    share_C = torch.from_numpy(cohort.count_C / cohort.count_C.sum()).float()
    assert yardstick.weights.keys() == trained.params.keys()
    for key, value in trained.params.items():
        average = torch.tensordot(share_C, value, dims=1)
        torch.testing.assert_close(yardstick.weights[key], average, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(weights[key], average, rtol=1e-3, atol=1e-4)


def test_the_yardstick_draws_each_epoch_afresh_from_its_seed() -> None:
    x_ND, y_N, rows = data()

    def after(seed: int, rounds: int) -> Any:
        one = Ceiling(
            "linear", x_ND, y_N, rows, batch_size=BATCH, learning_rate=RATE, seed=seed,
            weights=initial_weights("linear", D, OUT, 0),
        )  # fmt: skip
        for _ in range(rounds):
            shuffled = one._shuffled(CLIENTS, one.count_K[CLIENTS])
            for row, client in zip(shuffled, CLIENTS, strict=True):
                assert sorted(row[: COUNTS[client]]) == sorted(rows[client])
        one.round(CLIENTS)
        return one.weights["weight"]

    assert torch.equal(after(1, 0), after(1, 0))
    assert not torch.equal(after(1, 0), after(1, 1))
    assert not torch.equal(after(1, 0), after(2, 0))


def test_rates_of_the_yardstick_are_those_of_the_model_of_the_configuration() -> None:
    from fedmoe.config import load_config

    model = load_config(["model=moe"]).model
    assert isinstance(model, MoeConfig)
    assert isinstance(model.router, SoftmaxRouterConfig)
    assert (model.num_experts, model.router.top_k, model.losses.balance) == (
        EXPERTS, TOP_K, BALANCE,
    )  # fmt: skip
