# Training of mixtures under every router: a cohort against one client at a time, step by step.
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from losses_oracle import naive_loss
from models_oracle import OUT, ROUTERS, D, mixture, naive_expert, random_stack
from routers_oracle import Batch, Decision, naive_route
from torch import Tensor

from fedmoe.data import Task
from fedmoe.data.drawing import hash_keys
from fedmoe.models import MixtureOfExperts, Parameters, RouterLosses
from fedmoe.models.router_losses import FederationLoad
from fedmoe.models.routing import Routing
from fedmoe.schema import TrainingConfig
from fedmoe.training.batches import make_schedule
from fedmoe.training.cohort import Cohort, train_cohort
from fedmoe.training.pool import Pool

COUNTS, EPOCHS = [7, 9, 2, 5], [2, 1, 3, 2]
IDS = np.array([4, 1, 7, 3])
SEED, ROUND, BATCH, RATE = 11, 3, 4, 0.3
TASK = Task(kind="classification", num_features=D, num_outputs=OUT)
CONFIG = TrainingConfig(
    optimizer="sgd", learning_rate=RATE, momentum=0.0, weight_decay=0.0, epochs=1,
    batch_size=BATCH, reset_optimizer=True, cohort_size=100, num_threads=1, device="cpu",
)  # fmt: skip
NO_WEIGHTS = {"router.prior", "router.assignment", "router.balance_bias"}
LOSSES = {
    "importance": RouterLosses(importance=0.4, scope="federation"),
    "all": RouterLosses(importance=0.2, load=0.3, balance=0.3, z=0.1),
    "federation": RouterLosses(importance=0.2, load=0.3, balance=0.3, z=0.1, scope="federation"),
}
CASES = [(name, combine) for name in ROUTERS for combine in ("outputs", "probabilities")]


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pool() -> Pool:
    total = sum(COUNTS)
    return Pool(draw(1, total, D), draw(2, total, OUT).argmax(dim=1))


def rows_of(client: int) -> Any:
    start = sum(COUNTS[:client])
    return np.arange(start, start + COUNTS[client])


def told(experts: int) -> FederationLoad:
    load, importance = draw(3, 2, len(COUNTS), experts).exp()
    return FederationLoad(
        load / load.sum(dim=1, keepdim=True), importance / importance.sum(dim=1, keepdim=True)
    )


def cohort_of(model: MixtureOfExperts, members: list[int], start: Parameters) -> Cohort:
    rows_Cn = np.zeros((len(members), max(COUNTS[c] for c in members)), dtype=np.int64)
    for row, client in zip(rows_Cn, members, strict=True):
        row[: COUNTS[client]] = rows_of(client)
    return Cohort(
        client_C=IDS[members],
        rows_Cn=rows_Cn,
        count_C=np.array(COUNTS)[members],
        params={name: value[members] for name, value in start.items()},
        seed=SEED,
        round=ROUND,
        epochs_C=np.array(EPOCHS)[members],
        lr_C=torch.full((len(members),), RATE, dtype=torch.float64),
        federation=FederationLoad(*(part[members] for part in told(model.num_experts))),
    )


def stacked(decisions: list[Decision]) -> Routing:
    """The decisions of a batch as (E, B)."""
    columns = [
        None if column[0] is None else torch.stack([torch.stack(s) for s in column], dim=1)
        for column in zip(*decisions, strict=True)
    ]
    return Routing(*columns)  # type: ignore[arg-type]


def naive_step_loss(
    model: MixtureOfExperts, params: Parameters, client: int, step: int, rows: Tensor,
    losses: RouterLosses,
) -> Tensor:  # fmt: skip
    """Mean cross-entropy of a batch of one client, and what is added to it."""
    own = {
        name.removeprefix("router."): value
        for name, value in params.items()
        if name.startswith("router.")
    }
    x_BD, target_B = pool().x_ND[rows], pool().y_N[rows]
    key = int(hash_keys(SEED, ROUND, int(IDS[client]), step))
    batch = Batch(x_BD, [1 / len(rows)] * len(rows), key)
    decisions = naive_route(model.rule, own, batch)
    total = torch.zeros(()).double()
    for x_D, target, decision in zip(x_BD, target_B, decisions, strict=True):
        answers = [naive_expert(params, e, x_D)[0] for e in range(model.num_experts)]
        if model.combine == "probabilities":
            answers = [answer.softmax(dim=0) for answer in answers]
        y_O = sum((w * a for w, a in zip(decision.weight, answers, strict=True)), start=total * 0)
        if model.combine == "probabilities":
            dropped = not any(w.item() > 0 for w in decision.weight)
            y_O = torch.zeros(OUT).double() if dropped else y_O.log()
        total = total - y_O.log_softmax(dim=0)[target] / len(rows)
    federation = None
    if losses.scope == "federation":
        federation = FederationLoad(*(part[client] for part in told(model.num_experts)))
    routing = stacked(decisions)
    for name in ("importance", "load", "balance", "z"):
        if weight := getattr(losses, name):
            total = total + weight * naive_loss(name, routing, len(rows), federation)
    return total


def naive_training(
    model: MixtureOfExperts, start: Parameters, client: int, losses: RouterLosses,
    decay: float = 0.0,
) -> Parameters:  # fmt: skip
    params = {name: value[client].clone().requires_grad_() for name, value in start.items()}
    schedule = make_schedule(
        rows_Cn=rows_of(client)[None], count_C=np.array([COUNTS[client]]),
        client_C=IDS[client : client + 1], epochs_C=np.array([EPOCHS[client]]),
        batch_size=BATCH, seed=SEED, round=ROUND,
    )  # fmt: skip
    for step, (rows_CB, size_C) in enumerate(
        zip(schedule.rows_SCB, schedule.samples_SC, strict=True)
    ):
        rows = torch.from_numpy(rows_CB[0, : size_C[0]])
        loss = naive_step_loss(model, params, client, step, rows, losses)
        grads = torch.autograd.grad(
            loss, list(params.values()), allow_unused=True, materialize_grads=True
        )
        with torch.no_grad():
            for (name, value), grad in zip(params.items(), grads, strict=True):
                shrink = decay if name not in NO_WEIGHTS else 0.0
                value -= RATE * (grad + shrink * value)
    return {name: value.detach() for name, value in params.items()}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(("name", "combine"), CASES)
def test_a_cohort_trains_as_its_clients_do_step_by_step(name: str, combine: Any, kind: str) -> None:
    model = mixture(ROUTERS[name], (), combine)
    start = {key: 0.5 * value for key, value in random_stack(model, len(COUNTS)).items()}
    everyone = list(range(len(COUNTS)))
    cohort = cohort_of(model, everyone, start)
    trained = train_cohort(model, TASK, pool(), CONFIG, cohort, LOSSES[kind])
    for client in everyone:
        expected = naive_training(model, start, client, LOSSES[kind])
        for key, value in expected.items():
            torch.testing.assert_close(trained.params[key][client], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_client_trains_the_same_alone_and_in_any_cohort(name: str) -> None:
    model = mixture(ROUTERS[name], (5,))
    start = random_stack(model, len(COUNTS))

    def train(members: list[int]) -> Parameters:
        cohort = cohort_of(model, members, start)
        return train_cohort(model, TASK, pool(), CONFIG, cohort, LOSSES["federation"]).params

    together, pair = train([0, 1, 2, 3]), train([2, 0])
    for client in range(len(COUNTS)):
        for key, value in train([client]).items():
            torch.testing.assert_close(value[0], together[key][client], rtol=1e-9, atol=1e-9)
    for key, value in pair.items():
        torch.testing.assert_close(value, together[key][[2, 0]], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["prior", "prior-alone", "client", "loss-free", "softmax"])
def test_weight_decay_leaves_alone_what_is_no_weight(name: str) -> None:
    model = mixture(ROUTERS[name], ())
    start = {key: 0.5 * value for key, value in random_stack(model, len(COUNTS)).items()}
    config = replace(CONFIG, weight_decay=0.4)
    cohort = cohort_of(model, list(range(len(COUNTS))), start)
    trained = train_cohort(model, TASK, pool(), config, cohort).params
    for client in range(len(COUNTS)):
        alone = train_cohort(model, TASK, pool(), config, cohort_of(model, [client], start)).params
        expected = naive_training(model, start, client, RouterLosses(), decay=0.4)
        for key, value in expected.items():
            torch.testing.assert_close(trained[key][client], value, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(alone[key][0], value, rtol=1e-6, atol=1e-6)


def test_nothing_moves_what_no_gradient_reaches() -> None:
    for name, key in [("client", "assignment"), ("loss-free", "balance_bias")]:
        model = mixture(ROUTERS[name], (5,))
        start = random_stack(model, len(COUNTS))
        cohort = cohort_of(model, [0, 1, 2, 3], start)
        trained = train_cohort(model, TASK, pool(), CONFIG, cohort, LOSSES["all"]).params
        assert torch.equal(trained[f"router.{key}"], start[f"router.{key}"])
        assert not torch.equal(trained["experts.weights.0"], start["experts.weights.0"])
