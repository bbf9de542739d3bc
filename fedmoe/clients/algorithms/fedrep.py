"""FedRep (arXiv 2102.07078, algorithm 1): the clients' side.

A client gets the body of the model and has a head of its own. It trains the head for
`head_epochs` with the body as it was received, then the body for `training.epochs` with the new
head, and sends the body back. It is scored with the body as received and its own head.

Which parameters are the head says `fedmoe.models.heads`, or `strategy.head` by name. A linear
model is all head: nothing is shared then, and clients train alone.

Deviations: all heads begin alike, with the model's initial parameters, and those are what a
client that has never trained is scored with (the paper draws them); body and head take the same
optimiser and rate from `training`, each with a state of its own.
"""

from typing import TYPE_CHECKING

from torch import nn

from fedmoe.clients.algorithms.base import LocalAlgorithm
from fedmoe.data.federation import Task
from fedmoe.models import Parameters
from fedmoe.models.heads import head_names
from fedmoe.schema import FedRepConfig, ModelConfig
from fedmoe.training.cohort import Trained

if TYPE_CHECKING:
    from fedmoe.clients.job import Job

HEAD_OPTIMIZER = "head-optimizer"  # key of a client's private state


class FedRep(LocalAlgorithm):
    """Trains a private head, then the received body under it."""

    def __init__(self, config: FedRepConfig) -> None:
        self.head, self.head_epochs = config.head, config.head_epochs

    def build(self, config: ModelConfig, task: Task, seed: int) -> nn.Module:
        """The model, which must have what is named as its head."""
        model = super().build(config, task, seed)
        head_names(model, self.head)
        return model

    def private_names(self, model: nn.Module) -> frozenset[str]:
        """The head's parameters."""
        return head_names(model, self.head)

    def train(self, job: "Job", start: Parameters) -> Trained:
        """Train the head with the body frozen, then the body with the head frozen."""
        head = self.private_names(job.experiment.model)
        body = start.keys() - head
        trained = job.train(
            start, epochs=self.head_epochs, frozen=frozenset(body), optimizer=HEAD_OPTIMIZER
        )
        return job.train(trained.params, frozen=head) if body else trained
