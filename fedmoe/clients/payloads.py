"""The payloads of a cohort's insights.

Letters: C clients of the cohort, P parameters, S public inputs, O outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedmoe.clients.experts import with_rows
from fedmoe.clients.job import Job
from fedmoe.clients.load import whole_load
from fedmoe.insight.payloads import Sources
from fedmoe.models import Parameters
from fedmoe.training.answers import answer_all


def make_payloads(
    job: Job, names: Sequence[str], start: Parameters, end: Parameters
) -> dict[str, Tensor]:
    """Some payloads of each client, (C, ...) by name of the array.

    Args:
        job: the clients.
        names: of the payloads.
        start: the models that training began with, (C, ...) by name, or (1, ...).
        end: and those that came out, (C, ...).

    Raises:
        ValueError: there is no such payload for the task and the model.
    """
    payloads = job.experiment.payloads.by_name
    if unknown := [name for name in names if name not in payloads]:
        raise ValueError(
            f"payload {unknown[0]!r} is unknown or does not fit; there are {sorted(payloads)}"
        )
    if not names:
        return {}
    sources = Sources(
        *job.samples.padded(),
        change=lambda: _change(job, start, end),
        load=lambda: whole_load(job, end),
        part=lambda name: _part(job, name),
        answers=lambda: _answers(job, end),
    )
    return {n: array for name in names for n, array in payloads[name].make(sources).items()}


def _change(job: Job, start: Parameters, end: Parameters) -> Tensor:
    """(C, P): of what travels of a model, or of all where nothing does; 0 of absent experts."""
    experiment = job.experiment
    algorithm, model = experiment.algorithm, experiment.model
    before = algorithm.split(model, start)[0] or start
    after = algorithm.split(model, end)[0] or end
    held_CM = algorithm.held_experts(job, end)
    moved = []
    for name, now in after.items():
        difference = now - before[name].to(now)
        if held_CM is not None:
            difference = with_rows(torch.zeros_like(experiment.parts[0][name]), held_CM, difference)
        moved.append(difference.flatten(1))
    return torch.cat(moved, dim=1)


def _part(job: Job, name: str) -> Tensor:
    """(C, ...): of guidance; zeros for who does not hold it.

    Raises:
        ValueError: none of the clients does.
    """
    if name not in job.guidance.parts:
        raise ValueError(f"a payload needs guidance {name}, which was not told")
    return job.guidance.parts[name]


def _answers(job: Job, params: Parameters) -> Tensor:
    """(C, S, O): what the clients' models say of the public inputs."""
    public_SD, most = job.experiment.public_SD, job.experiment.config.training.cohort_size
    return answer_all(job.model_of(params), params, public_SD, most)
