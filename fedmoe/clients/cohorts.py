"""The cohort that a job trains, and the optimiser's state that its clients keep between rounds.

Letters: C clients of the cohort, M experts that a client holds.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fedmoe.clients.experts import held_state, with_state
from fedmoe.clients.guided import (
    guided_prior,
    guided_rates,
    guided_terms,
)
from fedmoe.clients.load import federation_load
from fedmoe.clients.requests import TrainRequest
from fedmoe.models import Parameters
from fedmoe.training.cohort import Cohort
from fedmoe.training.optimizers import make_optimizer
from fedmoe.training.terms import Prior, Term

if TYPE_CHECKING:
    from fedmoe.clients.job import Job


@dataclass(frozen=True)
class KeptState:
    """The optimiser's state of a job's clients, among their private arrays.

    Attributes:
        job: the clients.
        key: under which it is kept.
        moving: names of the parameters that it belongs to.
        held: (C, M) which experts are trained; `None` for all.
    """

    job: "Job"
    key: str
    moving: Set[str]
    held: Tensor | None

    def read(self) -> Parameters | None:
        """What the clients go on from; `None` if all begin."""
        job = self.job
        found = job.states.read(self.key, job.clients, self._fresh())
        if found is None:
            return None
        found = {n: value.to(job.experiment.device) for n, value in found.items()}
        return found if self.held is None else held_state(found, self.held)

    def keep(self, state: Parameters) -> None:
        """Keep what training has left; see `OwnArrays.finish`."""
        if state and self.held is not None:
            state = with_state(self.job.own.read(self.key, self._fresh()), self.held, state)
        self.job.own.keep(self.key, state)

    def _fresh(self) -> Parameters:
        """The optimiser's, for the moving parameters with all experts; (1, ...)."""
        experiment = self.job.experiment
        initial = experiment.initial.items()
        whole = {n: p[None].to(experiment.device) for n, p in initial if n in self.moving}
        return make_optimizer(experiment.config.training).initial_state(whole)


def cohort_of(
    job: "Job",
    params: Parameters,
    *,
    epochs: int | None,
    frozen: frozenset[str],
    still: Mapping[str, int],
    terms: Sequence[Term],
    prior: Prior | None,
    state: KeptState | None,
) -> Cohort:
    """What a job's clients train on, with what the request asks for; see `Job.train`."""
    request, count = job.request, len(job.clients)
    wide = job.each(params)
    asked, insight = list[Term](), False
    if isinstance(request, TrainRequest):
        asked = guided_terms(job.experiment, request, job.guidance, job.samples, wide)
        prior = guided_prior(job.experiment, job.guidance, job.samples.count_C) or prior
        insight = request.settings.payloads is not None
    return Cohort(
        client_C=job.clients,
        rows_Cn=job.samples.rows_Cn,
        count_C=job.samples.count_C,
        params=wide,
        seed=job.experiment.config.seed,
        round=request.settings.round,
        epochs_C=job.epochs_C if epochs is None else np.full(count, epochs, dtype=np.int64),
        lr_C=guided_rates(job.experiment, job.guidance_if_any, asked, count),
        optimizer_state=None if state is None else state.read(),
        terms=[*asked, *terms],
        prior=prior,
        federation=federation_load(job),
        wants_gradient_norms=insight,
        wants_optimizer_state=state is not None,
        frozen=frozen,
        still=still,
    )
