"""FedAvg with fine-tuning: the clients' side (arXiv 2108.07313, FTFA).

A client's personalised model is the global model after some epochs of its local training, with
the optimiser, rate and batches of `training` and a fresh optimiser state. It is made anew for
every evaluation and never kept, so that what one costs is an evaluation's, and nothing private
is left at the clients.

Deviations: the paper fine-tunes once, after the last round, with a step size of its own; here
every evaluation does, so that the course of a run shows.

Letters: C clients of the cohort.
"""

from typing import TYPE_CHECKING

import torch

from fedmoe.clients.algorithms.base import LocalAlgorithm
from fedmoe.messages.arrays import Stack
from fedmoe.models import Parameters
from fedmoe.schema import FedAvgFineTuneConfig
from fedmoe.training.gradients import per_client

if TYPE_CHECKING:
    from fedmoe.clients.job import Job


class FedAvgFineTune(LocalAlgorithm):
    """Trains the received model, and fine-tunes it for evaluation."""

    def __init__(self, config: FedAvgFineTuneConfig) -> None:
        self.epochs = config.finetune_epochs

    def personal_model(self, job: "Job", start: Parameters) -> Parameters:
        """The received model, fine-tuned; a client on which that diverges keeps to the received."""
        tuned = job.train(start, epochs=self.epochs, optimizer=None).params
        finite_C = Stack(tuned).finite_C
        if finite_C.all():
            return tuned
        found_C = torch.from_numpy(finite_C).to(job.experiment.device)
        return {n: torch.where(per_client(found_C, p), p, start[n]) for n, p in tuned.items()}
