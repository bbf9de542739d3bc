"""Ditto (arXiv 2012.04221, algorithm 1): the clients' side.

Each client trains the received global model w as in FedAvg, and sends that back. Besides it has
a personal model v, which never leaves it and goes on from round to round:

    min_v F_k(v) + lambda / 2 ||v - w||^2,  with w as it was received.

Both see their samples in the same order, as in the authors' code. Deviations: `training` gives
both their optimiser (the paper's is plain gradient descent), each with a state of its own; v
begins as the first w that the client trains on, which is the initial model where all clients
train in the first round, and a client that has never trained is scored with w. The paper's
choice of lambda by validation data, client by client, is not part of it.

The penalty is differentiated with the loss: beyond lambda = 2 / (learning rate) plain gradient
descent diverges, and the client then keeps the v that it had.
"""

from typing import TYPE_CHECKING

from fedmoe.clients.algorithms.base import LocalAlgorithm
from fedmoe.models import Parameters
from fedmoe.schema import DittoConfig
from fedmoe.training.cohort import Trained
from fedmoe.training.terms import Proximal

if TYPE_CHECKING:
    from fedmoe.clients.job import Job

PERSONAL = "personal-model"  # keys of a client's private state
PERSONAL_OPTIMIZER = "personal-optimizer"


class Ditto(LocalAlgorithm):
    """Trains the received model, and a private one that is held near to it."""

    def __init__(self, config: DittoConfig) -> None:
        self.strength, self.epochs = config.proximal_lambda, config.personal_epochs

    def train(self, job: "Job", start: Parameters) -> Trained:
        """Train both; what is told is the global one."""
        personal = job.train(
            job.own.read(PERSONAL, start),
            epochs=self.epochs,
            terms=[Proximal(job.each(start), self.strength)],
            optimizer=PERSONAL_OPTIMIZER,
        )
        job.own.keep(PERSONAL, personal.params)
        return job.train(start)

    def personal_model(self, job: "Job", start: Parameters) -> Parameters:
        """The private models; the global one of clients that have never trained."""
        return job.own.read(PERSONAL, start)
