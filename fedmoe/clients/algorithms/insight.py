"""Insight exchange: the clients' side.

Each client goes on with its own model, as in `strategy=local`, and is scored with the average of
its models over the rounds. Models that are never averaged with others' keep the noise of their
last steps; the average over rounds is rid of it and costs no message. It is that of
polynomial decay (Shamir and Zhang, "Stochastic gradient descent for non-smooth optimization",
ICML 2013, section 4),

    mean_t = (1 - a_t) mean_t-1 + a_t w_t,  a_t = (eta + 1) / (t + eta),

in which the last 1 / (eta + 1) or so of the rounds count; eta = 0 is the plain mean. Training
does not see it.

Letters: C clients of the cohort.
"""

from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from fedmoe.clients.algorithms.base import LocalAlgorithm
from fedmoe.models import Parameters
from fedmoe.schema import InsightExchangeConfig
from fedmoe.training.cohort import Trained

if TYPE_CHECKING:
    from fedmoe.clients.job import Job

AVERAGE, ROUNDS = "average", "rounds-averaged"  # keys of a client's private state


class InsightExchange(LocalAlgorithm):
    """Trains the client's own model, and keeps the average of those of all rounds."""

    def __init__(self, config: InsightExchangeConfig) -> None:
        self.averaging = config.averaging

    @override
    def train(self, job: "Job", start: Parameters) -> Trained:
        """Train and average."""
        trained = job.train(start)
        if self.averaging is None:
            return trained
        none_1 = torch.zeros(1, device=job.experiment.device)
        rounds_C = job.each(job.own.read(ROUNDS, {"rounds": none_1}))["rounds"] + 1
        share_C = ((self.averaging + 1) / (rounds_C + self.averaging)).clamp_max(1)
        before = job.own.read(AVERAGE, start)
        average = {
            name: before[name] + share_C.view(-1, *[1] * (now.dim() - 1)) * (now - before[name])
            for name, now in trained.params.items()
        }
        job.own.keep(AVERAGE, average)
        job.own.keep(ROUNDS, {"rounds": rounds_C})
        return trained

    @override
    def personal_model(self, job: "Job", start: Parameters) -> Parameters:
        """The averages; the initial model of clients that have never trained."""
        return job.own.read(AVERAGE, start)
