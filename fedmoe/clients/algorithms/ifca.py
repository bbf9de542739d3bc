"""IFCA: each client trains the best of several models.

Ghosh et al., "An efficient framework for clustered federated learning", arXiv 2006.04088,
algorithm 1, model averaging.

The clients get K models, choose the one with the least loss on their training data, train that
and send it back with its index. Evaluation chooses in the same way, among the models that have
just been received. Choice and training data are the client's; nothing is kept between rounds.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from typing_extensions import override

from fedmoe.clients.algorithms.base import LocalAlgorithm
from fedmoe.clients.algorithms.mixture import gather_evidence
from fedmoe.clients.experts import held_rows
from fedmoe.data.federation import Task
from fedmoe.messages.arrays import Records, Stack
from fedmoe.messages.words import ARRAYS, EXPERTS
from fedmoe.models import ClientRouter, Parameters, build_mixture
from fedmoe.schema import IfcaConfig, ModelConfig
from fedmoe.training.cohort import Trained
from fedmoe.training.posteriors import best_expert

if TYPE_CHECKING:
    from fedmoe.clients.job import Job

_ASSIGNMENT = "router.assignment"


class Ifca(LocalAlgorithm):
    """All K models come, one goes back.

    Attributes:
        config: how many clusters.
    """

    def __init__(self, config: IfcaConfig) -> None:
        self.config = config

    compares_experts = False  # only the chosen one is run

    @override
    def build(self, config: ModelConfig, task: Task, seed: int) -> nn.Module:
        """A mixture of models as configured, of which each client uses one."""
        router = ClientRouter(num_experts=self.config.num_clusters)
        return build_mixture(config, task, seed, router=router, combine="outputs")

    @override
    def private_names(self, model: nn.Module) -> frozenset[str]:
        return frozenset({_ASSIGNMENT})

    @override
    def train(self, job: "Job", start: Parameters) -> Trained:
        """Train the best of the models alone."""
        chosen = self._chosen(job, start)
        index_C1 = chosen[_ASSIGNMENT].long()
        return job.train(chosen, frozen=frozenset({_ASSIGNMENT}), experts=index_C1)

    @override
    def trained_from(self, job: "Job", start: Parameters, end: Parameters) -> Parameters:
        """Of all models the chosen one; the choice was made before training."""
        index_C1 = end[_ASSIGNMENT].long()
        chosen = {n: held_rows(start[n], index_C1) for n in end if n != _ASSIGNMENT}
        return {**chosen, _ASSIGNMENT: end[_ASSIGNMENT]}

    @override
    def told(self, job: "Job", trained: Trained) -> Records:
        """The one model that was trained, and which it was."""
        shared, private = self.split(job.experiment.model, trained.params)
        index_C1 = private[_ASSIGNMENT].long()
        count_C1 = torch.from_numpy(job.samples.count_C).to(index_C1.device).unsqueeze(1)
        told = {"index": index_C1, "examples": count_C1.float()}
        return {ARRAYS: Stack(shared), EXPERTS: Stack(told)}

    @override
    def kept(self, job: "Job", trained: Trained) -> Parameters:
        """Nothing: the next round chooses anew."""
        return {}

    @override
    def held_experts(self, job: "Job", params: Parameters) -> Tensor | None:
        """The one that was chosen."""
        return params[_ASSIGNMENT].long()

    @override
    def shared_model(self, job: "Job") -> Parameters | None:
        return None

    @override
    def personal_model(self, job: "Job", start: Parameters) -> Parameters | None:
        return self._chosen(job, start)

    def _chosen(self, job: "Job", params: Parameters) -> Parameters:
        """Each client's best model, (C, 1, ...) by name, with its index for an assignment."""
        found = gather_evidence(job, params)
        place_C1 = best_expert(found.log_likelihood_CEn, found.real_Cn).unsqueeze(1)
        chosen: dict[str, Tensor] = {n: held_rows(p, place_C1) for n, p in params.items()}
        # A score among one is the first, whatever it is; so it may say which model it was.
        index_C1 = job.expert_index(params).gather(1, place_C1)
        return {**chosen, _ASSIGNMENT: index_C1.to(params[_ASSIGNMENT])}
