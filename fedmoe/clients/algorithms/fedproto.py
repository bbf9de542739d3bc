"""FedProto (arXiv 2105.00243, algorithm 1): the clients' side.

Clients keep their models; no weights travel. A client trains with the loss

    cross-entropy + lambda * mean over the samples of MSE(f(x), C_y)

where f(x) is its model's representation of a sample and C_y the federation's mean
representation of the sample's class (see `fedmoe.training.terms.Alignment`), and tells the sum
and number of the trained model's representations of each class. It is scored with its own head.

Deviations: the paper predicts by the nearest prototype (equation 4); its authors' code reports
that and the head. Equation 8 is the distance between class means; the authors' code, as ours,
takes each sample's. Their prototypes are gathered while the model still changes, in the last
epoch; ours are of the model that comes out (equation 3). All models begin alike, so that
representations share their axes at first.

For a linear model the representation is the input, which nothing can pull: clients train alone.

Letters: C clients of the cohort, O classes, F width of the representation.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

from fedmoe.clients.algorithms.base import LocalAlgorithm
from fedmoe.data.federation import Task
from fedmoe.errors import ConfigError
from fedmoe.messages import words
from fedmoe.messages.arrays import Records, Stack
from fedmoe.models import Parameters
from fedmoe.models.heads import representation_width
from fedmoe.schema import FedProtoConfig, ModelConfig
from fedmoe.training.cohort import Trained
from fedmoe.training.representations import representation_sums
from fedmoe.training.terms import Alignment

if TYPE_CHECKING:
    from fedmoe.clients.job import Job


class FedProto(LocalAlgorithm):
    """Trains a private model whose representations are pulled to the federation's."""

    reads = (words.PROTOTYPES,)

    def __init__(self, config: FedProtoConfig) -> None:
        self.strength = config.prototype_lambda

    def build(self, config: ModelConfig, task: Task, seed: int) -> nn.Module:
        """The model, whose representations must be vectors, for a task that must have classes."""
        if task.kind != "classification":
            raise ConfigError(f"strategy=fedproto: needs classes, but the task is {task.kind}")
        model = super().build(config, task, seed)
        representation_width(model, task)
        return model

    def private_names(self, model: nn.Module) -> frozenset[str]:
        """All parameters."""
        return frozenset(name for name, _ in model.named_parameters())

    def train(self, job: "Job", start: Parameters) -> Trained:
        """Train the private models."""
        return job.train(start, terms=self._pull(job))

    def _pull(self, job: "Job") -> list[Alignment]:
        """The term of the prototypes that were sent, if there are any.

        Raises:
            ValueError: they do not fit the model, or are not finite.
        """
        told = job.extra(words.PROTOTYPES)
        if not told:
            return []
        task = job.experiment.data.task
        width = representation_width(job.experiment.model, task)
        expected = {"mean": (task.num_outputs, width), "known": (task.num_outputs,)}
        shapes = {name: tuple(value.shape[1:]) for name, value in told.items()}
        if shapes != expected:
            raise ValueError(f"the prototypes have shapes {shapes}, expected {expected}")
        if not all(bool(value.isfinite().all()) for value in told.values()):
            raise ValueError("the prototypes are not finite")
        known = {"mean": told["mean"].float(), "known": (told["known"] > 0).float()}
        each = job.each(known)
        return [Alignment(each["mean"], each["known"], self.strength)]

    def told(self, job: "Job", trained: Trained) -> Records:
        """Besides what any strategy tells: each class's representations by the trained models."""
        experiment, samples = job.experiment, job.samples
        sum_COF, count_CO = representation_sums(
            experiment.model, samples.pool, trained.params, samples.rows_Cn, samples.count_C,
            num_classes=experiment.data.task.num_outputs,
            cohort_size=experiment.config.training.cohort_size,
        )  # fmt: skip
        told = Stack({"sum": sum_COF, "count": count_CO.to(torch.int32)})
        return {**super().told(job, trained), words.PROTOTYPES: told}
