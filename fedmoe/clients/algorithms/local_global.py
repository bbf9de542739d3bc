"""A global and a local expert under a local gate.

Listo Zec et al., "Specialized federated learning using a mixture of experts", arXiv 2010.02056,
section 3; pFedMoE (arXiv 2402.01350) does the same with a shared extractor. The global expert is
averaged as in FedAvg; the local expert and the gate never leave the client. All three are
trained together, on the negative log-likelihood of the mixed class probabilities (squared error
of the mixed outputs for regression).

Deviations: no clients that opt out, the configured optimiser in place of Adam, and no early
stopping at the client.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn
from typing_extensions import override

from fedmoe.clients.algorithms.base import LocalAlgorithm
from fedmoe.data.federation import Task
from fedmoe.models import Parameters, Router, build_mixture
from fedmoe.schema import ModelConfig

if TYPE_CHECKING:
    from fedmoe.clients.job import Job


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
    def shared_model(self, job: "Job") -> Parameters | None:
        """The global expert alone."""
        router = {n: p[:, :1] for n, p in job.experiment.parts[1].items() if "router." in n}
        return {**job.received, **router}

    @override
    def personal_model(self, job: "Job", start: Parameters) -> Parameters | None:
        return start
