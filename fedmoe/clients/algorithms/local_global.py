"""A global and a local expert under a local gate.

Listo Zec et al., "Specialized federated learning using a mixture of experts", arXiv 2010.02056,
section 3, as in the authors' code. The global expert is trained and averaged as in FedAvg. The
local expert and the gate never leave the client; they are trained on the negative log-likelihood
of the mixed class probabilities (squared error of the mixed outputs for regression), in which
the global expert takes part as it was received, and does not move.

All three trained together, as pFedMoE (arXiv 2402.01350) does with a shared extractor, is worse:
a gate that favours the local expert leaves the global one to learn next to nothing.

Deviations: local expert and gate go on in every round, next to the global expert, instead of
being fitted once at the end; the local expert does not begin as a fine-tuned copy of the global
one; the gate is linear; no clients that opt out; the configured optimiser in place of Adam,
with a state of its own for each of the two trainings; no early stopping at the client.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn
from typing_extensions import override

from fedmoe.clients.algorithms.base import LocalAlgorithm
from fedmoe.data.federation import Task
from fedmoe.models import Parameters, Router, build_mixture
from fedmoe.schema import ModelConfig
from fedmoe.training.cohort import Trained

if TYPE_CHECKING:
    from fedmoe.clients.job import Job

LOCAL_OPTIMIZER = "local-optimizer"  # key of a client's private state


class LocalGlobal(LocalAlgorithm):
    """Expert 0 travels; expert 1 and the gate are private."""

    @override
    def build(self, config: ModelConfig, task: Task, seed: int) -> nn.Module:
        """Two models as configured under a gate."""
        return build_mixture(
            config, task, seed, router=Router(num_experts=2),
            combine="probabilities" if task.kind == "classification" else "outputs",
        )  # fmt: skip

    @override
    def split(self, model: nn.Module, params: Parameters) -> tuple[Parameters, Parameters]:
        experts = [name for name in params if name.startswith("experts.")]
        private = {name: p[:, 1:] if name in experts else p for name, p in params.items()}
        return {name: params[name][:, :1] for name in experts}, private

    @override
    def join(self, shared: Parameters, private: Parameters) -> Parameters:
        joined = {}
        for name, own in private.items():
            joined[name] = own
            if name in shared:
                clients = max(len(own), len(shared[name]))
                halves = [p.expand(clients, *p.shape[1:]) for p in (shared[name], own)]
                joined[name] = torch.cat(halves, dim=1)
        return joined

    @override
    def train(self, job: "Job", start: Parameters) -> Trained:
        """Train the global expert alone, and the other parts beside it as it was received."""
        first_C1 = torch.zeros(len(job.clients), 1, dtype=torch.int64, device=job.experiment.device)
        # A gate of one has no gradient.
        alone = job.train(self.shared_model(job), experts=first_C1).params
        shared = {name: value for name, value in alone.items() if name.startswith("experts.")}
        mixed = job.train(start, still=dict.fromkeys(shared, 1), optimizer=LOCAL_OPTIMIZER)
        _, private = self.split(job.experiment.model, mixed.params)
        return mixed._replace(params=self.join(shared, private))

    @override
    def shared_model(self, job: "Job") -> Parameters:
        """The global expert alone."""
        router = {n: p[:, :1] for n, p in job.experiment.parts[1].items() if "router." in n}
        return {**job.received, **router}

    @override
    def personal_model(self, job: "Job", start: Parameters) -> Parameters | None:
        return start
