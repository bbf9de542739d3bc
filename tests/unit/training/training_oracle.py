"""Plain training of one client at a time, which training of a cohort has to equal.

Formulas written out, ordinary leaf tensors, autograd and `torch.optim`; only the order of the
samples comes from `make_schedule`. Double precision, so that a rounding error never decides
which expert is chosen or which way Adam goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmoe.data import Task
from fedmoe.data.federation import Ints
from fedmoe.models import Linear, MixtureOfExperts, Mlp, Parameters, RouterLosses
from fedmoe.models.expert import Expert
from fedmoe.models.routers import SoftmaxRouter
from fedmoe.schema import TrainingConfig
from fedmoe.training.batches import make_schedule
from fedmoe.training.cohort import Cohort
from fedmoe.training.pool import Pool
from fedmoe.training.terms import Prior, Proximal, Rehearsal, Term

Kind = Literal["classification", "regression"]
D, OUT, EXPERTS, TOP_K, HIDDEN = 3, 3, 4, 2, 5
MODELS = ("linear", "mlp", "moe", "custom")


class Scaled(nn.Module):
    """A user's module: returns a bare tensor, has a scalar parameter and no stacked form."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(D, HIDDEN), nn.Linear(HIDDEN, OUT)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outer(torch.tanh(self.inner(x)))
        return self.scale * y


class Dropping(nn.Linear):
    """`Linear` with dropout before it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.dropout(x, 0.5, self.training))


def make_model(name: str) -> nn.Module:
    if name == "linear":
        return Linear(D, OUT)
    if name == "mlp":
        return Mlp(D, (HIDDEN,), OUT)
    if name == "moe":
        return MixtureOfExperts(
            D, OUT, experts=Expert(0, hidden=(HIDDEN,)).times(EXPERTS),
            router=SoftmaxRouter(num_experts=EXPERTS, top_k=TOP_K),
        )  # fmt: skip
    return Scaled()


def make_config(
    optimizer: Literal["sgd", "adam"] = "sgd",
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    batch_size: int = 8,
    cohort_size: int = 100,
) -> TrainingConfig:
    return TrainingConfig(
        optimizer=optimizer,
        learning_rate=0.5,  # not used: each client has its own
        momentum=momentum,
        weight_decay=weight_decay,
        epochs=7,  # nor is this
        batch_size=batch_size,
        reset_optimizer=True,
        cohort_size=cohort_size,
        num_threads=1,
        device="cpu",
    )


def plain_forward(name: str, params: Parameters, x_BD: Tensor) -> tuple[Tensor, Tensor | None]:
    """One client's outputs, and the load-balancing loss of a mixture of experts."""
    if name == "linear":
        return x_BD @ params["weight"].T + params["bias"], None
    if name == "mlp":
        hidden = torch.relu(x_BD @ params["weights.0"].T + params["biases.0"])
        return hidden @ params["weights.1"].T + params["biases.1"], None
    if name == "custom":
        hidden = torch.tanh(x_BD @ params["inner.weight"].T + params["inner.bias"])
        y = hidden @ params["outer.weight"].T + params["outer.bias"]
        return params["scale"] * y, None
    logits = x_BD @ params["router.weight"].T + params["router.bias"]
    top, index = logits.topk(TOP_K, dim=1)
    share = torch.zeros_like(logits).scatter(1, index, top.softmax(dim=1))
    y = torch.zeros(len(x_BD), OUT, dtype=x_BD.dtype)
    balance = torch.zeros((), dtype=x_BD.dtype)
    for e in range(EXPERTS):
        own = {name.removeprefix("experts."): value[e] for name, value in params.items()}
        answer, _ = plain_forward("mlp", own, x_BD)
        y = y + share[:, e, None] * answer
        load = (index == e).sum() / index.numel()
        balance = balance + EXPERTS * load * logits.softmax(dim=1)[:, e].mean()
    return y, balance


def plain_loss(kind: Kind, y_BO: Tensor, target: Tensor) -> Tensor:
    """Mean sample loss."""
    if kind == "classification":
        return functional.cross_entropy(y_BO, target)
    return functional.mse_loss(y_BO, target)


class Plain(NamedTuple):
    """What training of one client comes to."""

    params: Parameters
    first_loss: float
    final_loss: float
    mean_grad: float
    std_grad: float


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A cohort to train, everything drawn from `tensors_seed`.

    Row 0 of the pool is far out and nobody's: it shows wherever padding is counted.
    """

    model: str
    kind: Kind
    config: TrainingConfig
    counts: Sequence[int]
    epochs: Sequence[int]
    tensors_seed: int = 0
    seed: int = 11
    round: int = 3
    balance_weight: float = 0.0
    mu: float = 0.0
    rehearse: bool = False
    with_prior: bool = False
    going_on: bool = False
    module: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "module", make_model(self.model))

    @property
    def clients(self) -> int:
        return len(self.counts)

    @property
    def router_losses(self) -> RouterLosses:
        return RouterLosses(balance=self.balance_weight)

    @property
    def task(self) -> Task:
        return Task(kind=self.kind, num_features=D, num_outputs=OUT)

    def draw(self, stream: int, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.tensors_seed + stream)
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    @cached_property
    def pool(self) -> Pool:
        total = sum(self.counts) + 1
        x_ND, y_NO = self.draw(1, total, D), self.draw(2, total, OUT)
        x_ND[0] = 50.0
        return Pool(x_ND, y_NO.argmax(dim=1) if self.kind == "classification" else y_NO)

    @cached_property
    def rows(self) -> list[Ints]:
        """Each client's rows, scattered over the pool."""
        scattered = np.random.default_rng(self.tensors_seed).permutation(sum(self.counts)) + 1
        ends = np.cumsum(self.counts)
        return [scattered[end - n : end] for end, n in zip(ends, self.counts, strict=True)]

    @cached_property
    def ids(self) -> Ints:
        return np.random.default_rng(self.tensors_seed).permutation(100)[: self.clients]

    @cached_property
    def lr_C(self) -> Tensor:
        return 0.01 + 0.05 * self.draw(3, self.clients).sigmoid()

    @cached_property
    def precision_C(self) -> Tensor:
        return 4 * self.draw(4, self.clients).clamp_min(0)  # none for about half of them

    @cached_property
    def prototype_weight(self) -> Tensor:
        return self.draw(5, self.clients, OUT).clamp_min(0)

    @cached_property
    def prototypes(self) -> Tensor:
        return self.draw(6, self.clients, OUT, D)

    def params(self, stream: int) -> Parameters:
        shapes = {name: p.shape for name, p in self.module.named_parameters()}
        return {
            name: 0.7 * self.draw(stream + i, self.clients, *shape)
            for i, (name, shape) in enumerate(shapes.items())
        }

    @cached_property
    def start(self) -> Parameters:
        return self.params(100)

    @cached_property
    def anchor(self) -> Parameters:
        return self.params(200)

    @cached_property
    def prior_mean(self) -> Parameters:
        return self.params(300)

    @cached_property
    def state(self) -> Parameters | None:
        """Momentum or moments of an earlier round."""
        if not self.going_on:
            return None
        first, second = self.params(400), self.params(500)
        if self.config.optimizer == "sgd":
            if not self.config.momentum:
                return {}
            return {f"momentum.{name}": value for name, value in first.items()}
        return {
            "adam.step": torch.arange(1.0, self.clients + 1),
            **{f"adam.first.{name}": value for name, value in first.items()},
            **{f"adam.second.{name}": value.square() + 0.1 for name, value in second.items()},
        }

    def cohort(self, members: Sequence[int] | None = None) -> Cohort:
        """A cohort of some clients, by position; all by default."""
        own = list(range(self.clients) if members is None else members)
        rows_Cn = np.zeros((len(own), max((self.counts[c] for c in own), default=0)), np.int64)
        for row, client in zip(rows_Cn, own, strict=True):
            row[: self.counts[client]] = self.rows[client]

        def pick(tensors: Parameters) -> Parameters:
            return {name: value[own] for name, value in tensors.items()}

        terms: list[Term] = []
        if self.mu:
            terms.append(Proximal(pick(self.anchor), self.mu))
        if self.rehearse:
            weight = self.prototype_weight[own]
            target = torch.eye(weight.shape[1]).expand(len(weight), -1, -1)
            terms.append(Rehearsal(self.prototypes[own], target, weight))
        state = self.state
        return Cohort(
            client_C=self.ids[own],
            rows_Cn=rows_Cn,
            count_C=np.array(self.counts, dtype=np.int64)[own],
            params=pick(self.start),
            seed=self.seed,
            round=self.round,
            epochs_C=np.array(self.epochs, dtype=np.int64)[own],
            lr_C=self.lr_C[own],
            optimizer_state=None if state is None else pick(state),
            terms=terms,
            prior=Prior(pick(self.prior_mean), self.precision_C[own]) if self.with_prior else None,
        )

    def batches(self, client: int) -> list[Tensor]:
        """The rows of each step of one client."""
        schedule = make_schedule(
            rows_Cn=self.rows[client][None],
            count_C=np.array([self.counts[client]]),
            client_C=self.ids[client : client + 1],
            epochs_C=np.array([self.epochs[client]]),
            batch_size=self.config.batch_size,
            seed=self.seed,
            round=self.round,
        )
        steps = zip(schedule.rows_SCB, schedule.samples_SC, strict=True)
        return [torch.from_numpy(rows_CB[0, : size_C[0]]) for rows_CB, size_C in steps]

    def optimizer(self, client: int, params: Parameters) -> torch.optim.Optimizer:
        lr, leaves = self.lr_C[client].item(), list(params.values())
        decay, state = self.config.weight_decay, self.state or {}
        if self.config.optimizer == "adam":
            adam = torch.optim.Adam(leaves, lr=lr, weight_decay=decay)
            for name, leaf in params.items() if state else ():
                adam.state[leaf] = {
                    "step": state["adam.step"][client].clone(),
                    "exp_avg": state[f"adam.first.{name}"][client].clone(),
                    "exp_avg_sq": state[f"adam.second.{name}"][client].clone(),
                }
            return adam
        sgd = torch.optim.SGD(leaves, lr=lr, momentum=self.config.momentum, weight_decay=decay)
        for name, leaf in params.items() if state else ():
            sgd.state[leaf] = {"momentum_buffer": state[f"momentum.{name}"][client].clone()}
        return sgd

    def total(
        self, client: int, params: Parameters, loss: Tensor, balance: Tensor | None
    ) -> Tensor:
        """The mean sample loss and all that is added to it."""
        total = loss
        if balance is not None:
            total = total + self.balance_weight * balance
        if self.mu:
            for name, p in params.items():
                total = total + self.mu / 2 * (p - self.anchor[name][client]).square().sum()
        if self.rehearse:
            y, _ = plain_forward(self.model, params, self.prototypes[client])
            each = functional.cross_entropy(y, torch.arange(OUT), reduction="none")
            total = total + (each * self.prototype_weight[client]).sum()
        return total

    def plain(self, client: int) -> Plain:
        """Train one client alone."""
        pool = self.pool
        params = {name: v[client].clone().requires_grad_() for name, v in self.start.items()}
        optimizer = self.optimizer(client, params)
        losses: list[tuple[float, int]] = []
        norms: list[float] = []
        strength = self.lr_C[client] * self.precision_C[client]
        for rows in self.batches(client):
            y, balance = plain_forward(self.model, params, pool.x_ND[rows])
            loss = plain_loss(self.kind, y, pool.y_N[rows])
            total = self.total(client, params, loss, balance)
            grads = torch.autograd.grad(total, list(params.values()))
            for leaf, grad in zip(params.values(), grads, strict=True):
                leaf.grad = grad
            losses.append((loss.item(), len(rows)))
            norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())
            optimizer.step()
            if self.with_prior:
                with torch.no_grad():
                    for name, leaf in params.items():
                        pulled = leaf + strength * self.prior_mean[name][client]
                        leaf.copy_(pulled / (1 + strength))
        per_epoch = len(losses) // max(self.epochs[client], 1)
        return Plain(
            {name: leaf.detach() for name, leaf in params.items()},
            _mean(losses[:per_epoch]),
            _mean(losses[-per_epoch:]),
            float(np.mean(norms)) if norms else 0.0,
            float(np.std(norms)) if norms else 0.0,
        )

    def with_epochs(self, epochs: Sequence[int]) -> "Setup":
        return replace(self, epochs=epochs)


def _mean(losses: list[tuple[float, int]]) -> float:
    """Mean over samples of (mean over a batch, its size)."""
    samples = sum(size for _, size in losses)
    return sum(loss * size for loss, size in losses) / samples if samples else 0.0
