"""Local training of many clients at once.

A cohort's parameters lie on a leading client axis and take each step together. Clients are
ordered by their number of steps, so those that have finished drop off the end and cost
nothing; short batches are padded and masked. A cohort of one is how a single client trains:
there is no second code path.

Everything happens on the device of the pool, and nothing waits for it before the end.

Letters: C clients, n most samples of a client.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedmoe.data.federation import Ints, Task
from fedmoe.models.base import Parameters, StackedModule
from fedmoe.models.router_losses import FederationLoad, RouterLosses
from fedmoe.schema import TrainingConfig
from fedmoe.training.batches import hash_keys, steps_per_epoch
from fedmoe.training.chunks import capacity, even_chunks
from fedmoe.training.optimizers import make_optimizer
from fedmoe.training.pool import Pool
from fedmoe.training.steps import differentiation
from fedmoe.training.terms import Prior, Term, copy_rows, take, take_rows
from fedmoe.training.trainer import Rest, Trainer

_NO_LOSSES = RouterLosses()


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
        federation: how the federation used its experts, for `RouterLosses`, or `None`.
        wants_gradient_norms: whether `Trained.mean_grad_C` and `std_grad_C` are to be computed.
        wants_optimizer_state: whether `Trained.optimizer_state` is to be kept.
        frozen: names of parameters that are used but do not move.
        still: by name, how many rows of a parameter do not move, from the first.
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
    federation: FederationLoad | None = None
    wants_gradient_norms: bool = True
    wants_optimizer_state: bool = True
    frozen: frozenset[str] = frozenset()
    still: Mapping[str, int] = field(default_factory=dict)

    def moving(self, values: Parameters) -> Parameters:
        """What moves of the parameters, of their gradient or of the optimiser's state: views."""
        moving = {n: v for n, v in values.items() if n not in self.frozen}
        for name, rows in self.still.items():
            for own in moving:
                if own == name or own.endswith(f".{name}"):  # as in momentum.NAME
                    moving[own] = moving[own][:, rows:]
        return moving

    def take(self, index: Ints, params: Parameters) -> "Cohort":
        """The chosen clients, in that order, on the device of the given parameters."""
        rows = torch.from_numpy(index).to(next(iter(params.values())).device)
        state = self.optimizer_state
        most = int(self.count_C[index].max(initial=0))
        return replace(
            self,
            client_C=self.client_C[index],
            rows_Cn=self.rows_Cn[index, :most],
            count_C=self.count_C[index],
            params=params,
            epochs_C=self.epochs_C[index],
            lr_C=take_rows(self.lr_C, rows),
            optimizer_state=None if state is None else take(state, rows),
            terms=[term.take(rows) for term in self.terms],
            prior=None if self.prior is None else self.prior.take(rows),
            federation=self.federation
            and FederationLoad(*(take_rows(value, rows) for value in self.federation)),
        )


class Trained(NamedTuple):
    """A trained cohort, in the caller's order of clients.

    Attributes:
        params: parameters after training, client axis first.
        optimizer_state: state after training, client axis first; empty if it was not wanted.
        first_loss_C: mean sample loss over the first epoch, each batch before its step.
        final_loss_C: the same over the last epoch.
        mean_grad_C: mean L2 norm of the gradient over the steps.
        std_grad_C: its standard deviation. Both are NaN if they were not wanted.
    """

    params: Parameters
    optimizer_state: Parameters
    first_loss_C: Tensor
    final_loss_C: Tensor
    mean_grad_C: Tensor
    std_grad_C: Tensor


@torch.no_grad()
def train_cohort(
    model: nn.Module,
    task: Task,
    pool: Pool,
    config: TrainingConfig,
    cohort: Cohort,
    router_losses: RouterLosses = _NO_LOSSES,
) -> Trained:
    """Train each client of the cohort on its own rows.

    Clients that come ordered by falling number of steps, then of samples, are spared a copy.

    Args:
        model: the architecture, put into training mode; its own parameters are not used.
        task: fixes the loss.
        pool: where the rows lie, and on which device to train.
        config: optimiser, batch size and most clients to stack at once.
        cohort: the clients; left as it was.
        router_losses: what a mixture adds to its loss.
    """
    steps_C = steps_per_epoch(cohort.count_C, config.batch_size) * cohort.epochs_C
    # By steps, so that whoever has finished drops off; by samples, so that little is padded.
    order = np.lexsort((-cohort.count_C, -steps_C))
    index = torch.from_numpy(order).to(pool.device)
    params = {name: copy_rows(value, index) for name, value in cohort.params.items()}
    samples = min(config.batch_size, int(cohort.count_C.max(initial=1)))
    most = capacity(params, pool, samples, config.cohort_size)
    draws: AbstractContextManager[None] = nullcontext()
    undecayed = model.undecayed if isinstance(model, StackedModule) else frozenset[str]()
    if not isinstance(model, StackedModule) or model.draws:
        draws = _seeded(cohort, pool.device)
    parts: list[Rest] = []
    with draws:
        for chunk in even_chunks(len(order), most):
            part = cohort.take(order[chunk], {name: p[chunk] for name, p in params.items()})
            differentiate = differentiation(model, task, part.terms, router_losses)
            trainer = Trainer(
                differentiate, pool, make_optimizer(config, undecayed), config.batch_size,
                isinstance(model, StackedModule) and model.wants_keys,
            )  # fmt: skip
            parts.append(trainer.train(part))
    back = torch.from_numpy(order.argsort()).to(pool.device)
    if (np.diff(order) != 1).any():
        for name, value in params.items():  # one at a time: never two copies of everything
            params[name] = value.index_select(0, back)
    return Trained(params, *(_join(column, back) for column in zip(*parts, strict=True)))


@contextmanager
def _seeded(cohort: Cohort, device: torch.device) -> Iterator[None]:
    """Let torch's own generators repeat: modules draw from them, and take no other."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        key = hash_keys(cohort.seed, cohort.round, int(cohort.client_C[0]))
        torch.manual_seed(int(key) >> 1)
        yield


def _join(values: Sequence[Any], back: Tensor) -> Any:
    """One column of all chunks end to end, then in the caller's order."""
    if isinstance(values[0], dict):
        return {name: _join([value[name] for value in values], back) for name in values[0]}
    return (values[0] if len(values) == 1 else torch.cat(tuple(values))).index_select(0, back)
