"""Models to predict with, as a server's and the clients' scores are about them."""

import numpy as np
from flwr.app import Message
from torch import nn

from fedmoe.clients.experiment import Experiment
from fedmoe.clients.job import Job
from fedmoe.clients.reading import settings_of
from fedmoe.clients.requests import EvaluateRequest
from fedmoe.clients.states import StackedStates, States
from fedmoe.messages import words
from fedmoe.messages.arrays import from_record
from fedmoe.models import Parameters
from fedmoe.models.filled import filled


def evaluation_of(message: Message, client: int) -> EvaluateRequest:
    """What a server's message asks one client to evaluate."""
    sent = {key: from_record(record) for key, record in message.content.array_records.items()}
    stacked = {key: {n: t[None] for n, t in named.items()} for key, named in sent.items()}
    return EvaluateRequest(
        clients=np.array([client]),
        settings=settings_of(message.content),
        params=stacked.get(words.ARRAYS),
        experts=stacked.get(words.EXPERTS, {}).get("index"),
    )


def global_model(experiment: Experiment, request: EvaluateRequest) -> nn.Module | None:
    """The model that all clients share, a copy on the CPU; `None` where there is no such thing.

    Args:
        experiment: with the architecture.
        request: what one client is asked to evaluate.
    """
    job = Job(experiment, request, StackedStates())
    params = experiment.algorithm.shared_model(job)
    return None if params is None else _made(job, params)


def own_model(experiment: Experiment, request: EvaluateRequest, states: States) -> nn.Module:
    """One client's personalised model, or else the one that all share; a copy on the CPU.

    Args:
        experiment: with the architecture.
        request: what the client is asked to evaluate.
        states: with the client's private arrays.
    """
    job = Job(experiment, request, states)
    params = experiment.algorithm.personal_model(job, job.start())
    if params is None:
        params = experiment.algorithm.shared_model(job)
    assert params is not None  # there is one of the two
    return _made(job, params)


def _made(job: Job, params: Parameters) -> nn.Module:
    return filled(job.model_of(params), {name: value[0] for name, value in params.items()})
