"""Local training of many clients at once.

A cohort's parameters lie on a leading client axis and take each step together. Clients are
ordered by their number of steps, so those that have finished drop off the end and cost
nothing; short batches are padded and masked. A cohort of one is how a single client trains:
there is no second code path.

Letters: C clients, n most samples of a client, B batch, S steps, A clients active at a step.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedmoe.data.federation import Ints, Task
from fedmoe.models.base import Forward, Parameters, StackedModule, stacked_forward
from fedmoe.models.routers import balance_loss
from fedmoe.schema import TrainingConfig
from fedmoe.training.batches import Schedule, hash_keys, make_schedule, steps_per_epoch
from fedmoe.training.losses import SampleLoss, sample_loss
from fedmoe.training.optimizers import Optimizer, make_optimizer
from fedmoe.training.pool import Pool
from fedmoe.training.terms import Prior, Step, Term, take, take_first


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """What a cohort trains on, and from where.

    Attributes:
        client_C: ids of the clients; with `seed` and `round` they fix the order of the samples.
        rows_Cn: each client's rows of the pool, padded on the right.
        count_C: how many of them are real.
        params: parameters to start from, client axis first.
        seed: of the experiment.
        round: of the federation.
        epochs_C: passes over the data.
        lr_C: learning rates.
        optimizer_state: state to go on from; fresh if `None`.
        terms: what is added to the loss.
        prior: a prior on the parameters, or `None`.
    """

    client_C: Ints
    rows_Cn: Ints
    count_C: Ints
    params: Parameters
    seed: int
    round: int
    epochs_C: Ints
    lr_C: Tensor
    optimizer_state: Parameters | None = None
    terms: Sequence[Term] = ()
    prior: Prior | None = None

    def take(self, index: Ints) -> "Cohort":
        """The chosen clients, in that order; parameters are copied."""
        rows = torch.from_numpy(index)
        state = self.optimizer_state
        most = int(self.count_C[index].max(initial=0))
        return Cohort(
            client_C=self.client_C[index],
            rows_Cn=self.rows_Cn[index, :most],
            count_C=self.count_C[index],
            params=take(self.params, rows),
            seed=self.seed,
            round=self.round,
            epochs_C=self.epochs_C[index],
            lr_C=self.lr_C[rows],
            optimizer_state=None if state is None else take(state, rows),
            terms=[term.take(rows) for term in self.terms],
            prior=None if self.prior is None else self.prior.take(rows),
        )


class Trained(NamedTuple):
    """A trained cohort, in the caller's order of clients.

    Attributes:
        params: parameters after training, client axis first.
        optimizer_state: state after training, client axis first.
        first_loss_C: mean sample loss over the first epoch, each batch before its step.
        final_loss_C: the same over the last epoch.
        mean_grad_C: mean L2 norm of the gradient over the steps.
        std_grad_C: its standard deviation.
    """

    params: Parameters
    optimizer_state: Parameters
    first_loss_C: Tensor
    final_loss_C: Tensor
    mean_grad_C: Tensor
    std_grad_C: Tensor


def train_cohort(
    model: nn.Module,
    task: Task,
    pool: Pool,
    config: TrainingConfig,
    cohort: Cohort,
    balance_weight: float = 0.0,
) -> Trained:
    """Train each client of the cohort on its own rows.

    Args:
        model: the architecture, put into training mode; its own parameters are not used.
        task: fixes the loss.
        pool: where the rows lie.
        config: optimiser, batch size and most clients to stack at once.
        cohort: the clients; left as it was.
        balance_weight: weight of the router's load-balancing loss.
    """
    trainer = _Trainer(
        stacked_forward(model.train()), sample_loss(task), pool, make_optimizer(config),
        config.batch_size, balance_weight,
    )  # fmt: skip
    steps_C = steps_per_epoch(cohort.count_C, config.batch_size) * cohort.epochs_C
    order = np.argsort(-steps_C, kind="stable")
    chunks = [order[i : i + config.cohort_size] for i in range(0, len(order), config.cohort_size)]
    draws: AbstractContextManager[None] = nullcontext()
    if not isinstance(model, StackedModule):  # a user's module may have dropout
        draws = _seeded(cohort)
    with draws:
        parts = [trainer.train(cohort.take(chunk)) for chunk in chunks]
    back = torch.from_numpy(order.argsort())
    return Trained(*(_join(column, back) for column in zip(*parts, strict=True)))


@contextmanager
def _seeded(cohort: Cohort) -> Iterator[None]:
    """Let torch's own generator repeat: modules draw from it, and take no other."""
    with torch.random.fork_rng(devices=[]):
        key = hash_keys(cohort.seed, cohort.round, int(cohort.client_C[0]))
        torch.manual_seed(int(key) >> 1)
        yield


def _join(values: Sequence[Any], back: Tensor) -> Any:
    """One column of all chunks end to end, then in the caller's order."""
    if isinstance(values[0], dict):
        return {name: _join([value[name] for value in values], back) for name in values[0]}
    return (values[0] if len(values) == 1 else torch.cat(tuple(values)))[back]


@dataclass(frozen=True)
class _Trainer:
    """Trains chunks of a cohort whose clients are ordered by falling number of steps."""

    forward: Forward
    loss: SampleLoss
    pool: Pool
    optimizer: Optimizer
    batch_size: int
    balance_weight: float

    def train(self, cohort: Cohort) -> Trained:
        """Train one chunk; its parameters and state are changed in place."""
        schedule = make_schedule(
            rows_Cn=cohort.rows_Cn, count_C=cohort.count_C, client_C=cohort.client_C,
            epochs_C=cohort.epochs_C, batch_size=self.batch_size, seed=cohort.seed,
            round=cohort.round,
        )  # fmt: skip
        state = cohort.optimizer_state
        if state is None:
            state = self.optimizer.initial_state(cohort.params)
        steps, clients = schedule.epoch_SC.shape
        loss_SC, norm_SC = torch.zeros(steps, clients), torch.zeros(steps, clients)
        for step, active in enumerate(schedule.active_S.tolist()):
            loss_SC[step, :active], norm_SC[step, :active] = self._step(
                cohort, state, schedule.rows_SCB[step, :active], schedule.weight_SCB[step, :active]
            )
        return Trained(cohort.params, state, *_summarise(schedule, cohort, loss_SC, norm_SC))

    def _step(
        self, cohort: Cohort, state: Parameters, rows_AB: Tensor, weight_AB: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One optimiser step of the first A clients; returns sample loss and gradient norm."""
        active = len(rows_AB)
        lr_A = cohort.lr_C[:active]
        leaves = {k: v[:active].detach().requires_grad_() for k, v in cohort.params.items()}
        target = self.pool.y_N[rows_AB]
        output = self.forward(leaves, self.pool.x_ND[rows_AB])
        sample_A = (self.loss(output.y, target) * weight_AB).sum(dim=1)
        total_A = sample_A
        if self.balance_weight and output.gate_probs is not None:
            assert output.gate_chosen is not None
            total_A = total_A + self.balance_weight * balance_loss(
                output.gate_probs, output.gate_chosen, weight_AB
            )
        for term in cohort.terms:
            total_A = total_A + term(Step(self.forward, leaves, output, target, weight_AB))
        # A parameter that the output does not depend on has gradient zero.
        found = torch.autograd.grad(
            total_A.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        grads = dict(zip(leaves, found, strict=True))
        views = {name: value[:active] for name, value in cohort.params.items()}
        self.optimizer.step(views, grads, take_first(state, active), lr_A)
        if cohort.prior is not None:
            cohort.prior.pull(views, lr_A)
        square_A = sum(g.square().reshape(active, -1).sum(dim=1) for g in grads.values())
        return sample_A.detach(), torch.as_tensor(square_A).sqrt()


def _summarise(
    schedule: Schedule, cohort: Cohort, loss_SC: Tensor, norm_SC: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First and last epoch's mean loss; mean and deviation of the gradient norm."""
    real_SC = schedule.weight_SCB > 0
    samples_SC = real_SC.sum(dim=2).float()
    epoch_SC = torch.from_numpy(schedule.epoch_SC)
    last_C = torch.from_numpy(cohort.epochs_C) - 1

    def epoch_mean(epoch: int | Tensor) -> Tensor:
        weight_SC = samples_SC * (epoch_SC == epoch)
        return (loss_SC * weight_SC).sum(dim=0) / weight_SC.sum(dim=0).clamp_min(1)

    taken_SC = (samples_SC > 0).float()
    steps_C = taken_SC.sum(dim=0).clamp_min(1)
    mean_C = (norm_SC * taken_SC).sum(dim=0) / steps_C
    variance_C = ((norm_SC - mean_C).square() * taken_SC).sum(dim=0) / steps_C
    return epoch_mean(0), epoch_mean(last_C), mean_C, variance_C.sqrt()
