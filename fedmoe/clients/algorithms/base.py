"""What a client does with the model that it is sent: one algorithm a file.

The server's side of each is the strategy of the same name. Parameters that are private to the
clients are named here, and only here: they are in no reply, and a server that sends them gets an
error.

Letters: C clients of the cohort.
"""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from fedmoe.data.federation import Task
from fedmoe.messages.arrays import Records, Stack
from fedmoe.messages.words import ARRAYS
from fedmoe.models import Parameters, build_model
from fedmoe.schema import ModelConfig
from fedmoe.training.cohort import Trained

if TYPE_CHECKING:
    from fedmoe.clients.job import Job


class LocalAlgorithm:
    """Trains all of the received model; there is a personalised one only of private parts.

    Attributes:
        compares_experts: whether evaluation runs all experts that a client was sent, so that they
            can be compared with each other.
        reads: keys of the array records that it reads of a train message besides the weights.
    """

    compares_experts = True
    reads: tuple[str, ...] = ()

    def build(self, config: ModelConfig, task: Task, seed: int) -> nn.Module:
        """The model that the clients train.

        Raises:
            ConfigError: the configured model does not go with the algorithm.
        """
        return build_model(config, task, seed)

    def private_names(self, model: nn.Module) -> frozenset[str]:
        """The parameters that never leave a client."""
        del model
        return frozenset()

    def split(self, model: nn.Module, params: Parameters) -> tuple[Parameters, Parameters]:
        """What of a model travels, and what is private; `join` is the reverse.

        Args:
            model: as `build` made it.
            params: (C, ...) by name.
        """
        private = self.private_names(model)
        shared = {name: value for name, value in params.items() if name not in private}
        return shared, {name: value for name, value in params.items() if name in private}

    def join(self, shared: Parameters, private: Parameters) -> Parameters:
        """The model made of its parts; each is (C, ...), or (1, ...) where all have the same."""
        return {**shared, **private}

    def train(self, job: "Job", start: Parameters) -> Trained:
        """Train, and `job.keep` what is the client's own besides the parameters.

        Args:
            job: the clients.
            start: their models, (C, ...) by name, or (1, ...) where all have the same.
        """
        return job.train(start)

    def trained_from(self, job: "Job", start: Parameters, end: Parameters) -> Parameters:
        """The models that training began with, with the rows of those that came out.

        Args:
            job: the clients.
            start: the models that `train` was given, (C or 1, ...) by name.
            end: those that it returned, (C, ...).
        """
        del job, end
        return start

    def told(self, job: "Job", trained: Trained) -> Records:
        """What the clients reply besides metrics: the parameters that they were sent, trained.

        `train` may add records by `job.tell`.
        """
        shared, _ = self.split(job.experiment.model, trained.params)
        arrays: Records = {ARRAYS: Stack(shared)} if job.received else {}
        return {**arrays, **job.told}

    def kept(self, job: "Job", trained: Trained) -> Parameters:
        """What of the models the clients keep until they are asked again, (C, ...) by name."""
        return job.private(trained.params)

    def held_experts(self, job: "Job", params: Parameters) -> Tensor | None:
        """Which of a mixture's experts some models have, (C, M); `None` for all."""
        del params
        return job.experts

    def shared_model(self, job: "Job") -> Parameters | None:
        """The global model, whole, (1 or C, ...) by name; `None` where there is no such thing."""
        _, private = self.split(job.experiment.model, job.experiment.initial)
        return None if private else job.received or None

    def personal_model(self, job: "Job", start: Parameters) -> Parameters | None:
        """Each client's own model for evaluation, made with its training data.

        Args:
            job: the clients.
            start: the shared model with the clients' private parts.

        Returns:
            (C, ...) by name, or `None` if it is the shared model.
        """
        return None if self.shared_model(job) is not None else start
