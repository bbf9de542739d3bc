"""The steps of one chunk of a cohort: clients whose tensors are stacked.

Clients come ordered by their number of steps, so that those that have finished drop off the end
and cost nothing; short batches are padded and masked.

Letters: C clients, B batch, S steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmoe.data.federation import Ints
from fedmoe.models.base import Parameters
from fedmoe.models.router_losses import FederationLoad
from fedmoe.training.batches import Schedule, make_schedule, step_keys
from fedmoe.training.gradients import Found
from fedmoe.training.optimizers import Optimizer
from fedmoe.training.pool import Pool
from fedmoe.training.steps import Batch, Differentiate
from fedmoe.training.terms import take_first

if TYPE_CHECKING:
    from fedmoe.training.cohort import Cohort


class Rest(NamedTuple):
    """What training leaves besides the parameters; see `Trained`."""

    optimizer_state: Parameters
    first_loss_C: Tensor
    final_loss_C: Tensor
    mean_grad_C: Tensor
    std_grad_C: Tensor


@dataclass(frozen=True)
class Trainer:
    """Trains a chunk of a cohort whose clients are ordered by falling number of steps.

    Attributes:
        differentiate: the way to the gradient of a step.
        pool: where the rows lie.
        optimizer: what makes a step of the gradient.
        batch_size: samples per step.
        wants_keys: whether a router draws.
    """

    differentiate: Differentiate
    pool: Pool
    optimizer: Optimizer
    batch_size: int
    wants_keys: bool

    def train(self, cohort: "Cohort") -> Rest:
        """Train one chunk; its parameters and state are changed in place."""
        schedule = make_schedule(
            rows_Cn=cohort.rows_Cn, count_C=cohort.count_C, client_C=cohort.client_C,
            epochs_C=cohort.epochs_C, batch_size=self.batch_size, seed=cohort.seed,
            round=cohort.round,
        )  # fmt: skip
        state = cohort.optimizer_state
        if state is None:
            params = {n: p for n, p in cohort.params.items() if n not in cohort.frozen}
            state = self.optimizer.initial_state(params)
        loss_SC, norm_SC = self._take_steps(cohort, schedule, state)
        kept = state if cohort.wants_optimizer_state else {}
        return Rest(kept, *_summarise(schedule, cohort, loss_SC, norm_SC))

    def _take_steps(
        self, cohort: "Cohort", schedule: Schedule, state: Parameters
    ) -> tuple[Tensor, Tensor | None]:
        """(S, C) losses and, where they are wanted, gradient norms of all steps."""
        moving, moving_state = cohort.moving(cohort.params), cohort.moving(state)
        batches = self._batches(cohort, schedule)
        loss_SC = next(iter(cohort.params.values())).new_zeros(schedule.samples_SC.shape)
        norm_SC = torch.zeros_like(loss_SC) if cohort.wants_gradient_norms else None
        active = -1
        for step, (now, batch) in enumerate(zip(schedule.active_S, batches, strict=True)):
            if now != active:
                active = int(now)
                views, moves = take_first(cohort.params, active), take_first(moving, active)
                state_views = take_first(moving_state, active)
            loss_SC[step, :active], gradient = self.differentiate(views, batch)
            if norm_SC is not None or cohort.frozen or cohort.still:
                found = Found(cohort.moving(gradient.tensors()))
                gradient = found
                if norm_SC is not None:
                    norm_SC[step, :active] = found.norm_C()
            self.optimizer.step(moves, gradient, state_views, cohort.lr_C[:active])
            if cohort.prior is not None:
                cohort.prior.pull(moves, cohort.lr_C[:active])
        return loss_SC, norm_SC

    def _batches(self, cohort: "Cohort", schedule: Schedule) -> Iterator[Batch]:
        """What each step is taken on, by the clients that are active then."""
        like = next(iter(cohort.params.values()))
        rows_SCB = torch.from_numpy(schedule.rows_SCB).to(like.device)
        weight_SCB = torch.from_numpy(schedule.weight_SCB()).to(like)
        width_S = schedule.samples_SC.max(axis=1, initial=0)
        key_SC = None
        if self.wants_keys:
            keys = step_keys(cohort.seed, cohort.round, cohort.client_C, len(width_S))
            key_SC = torch.from_numpy(keys).to(like.device)
        federation, active = cohort.federation, -1
        for step, (now, width) in enumerate(zip(schedule.active_S, width_S, strict=True)):
            if now != active:
                active = int(now)
                if cohort.federation is not None:
                    federation = FederationLoad(*(v[:active] for v in cohort.federation))
            x, target = self.pool.batch(rows_SCB[step, :active, :width])
            weight = weight_SCB[step, :active, :width]
            key = None if key_SC is None else key_SC[step, :active]
            yield Batch(x, target, weight, key, federation)


def _summarise(
    schedule: Schedule, cohort: "Cohort", loss_SC: Tensor, norm_SC: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First and last epoch's mean loss; mean and deviation of the gradient norm."""

    def weighted(values_SC: Tensor, weight_SC: Ints | NDArray[np.bool_]) -> Tensor:
        share_SC = weight_SC / np.maximum(weight_SC.sum(axis=0), 1)
        return (values_SC * torch.from_numpy(share_SC).to(values_SC)).sum(dim=0)

    samples_SC, epoch_SC = schedule.samples_SC, schedule.epoch_SC
    first_C = weighted(loss_SC, samples_SC * (epoch_SC == 0))
    last_C = weighted(loss_SC, samples_SC * (epoch_SC == cohort.epochs_C - 1))
    if norm_SC is None:
        unknown_C = torch.full_like(first_C, torch.nan)
        return first_C, last_C, unknown_C, unknown_C
    taken_SC = samples_SC > 0
    mean_C = weighted(norm_SC, taken_SC)
    variance_C = weighted((norm_SC - mean_C).square(), taken_SC)
    return first_C, last_C, mean_C, variance_C.sqrt()
