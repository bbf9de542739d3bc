"""FedEM: each client mixes shared components in proportions of its own.

Marfoq et al., "Federated multi-task learning under a mixture of distributions", arXiv
2108.10252, algorithm 1.

Each client's data are a mixture of M components that all clients share, in proportions pi_k of
its own. A round's E step finds the posteriors and pi_k (equations 5 and 6), the M step trains
the components on samples weighted by their posteriors (equation 7).

Deviations: the M step follows the mixture's negative log-likelihood, whose gradient by a
component is posterior-weighted, with posteriors as they are at each local step instead of as
they were in the E step; and pi_k is fitted once more before evaluation, with the components that
have just been received (training data only).
"""

from typing import TYPE_CHECKING

from torch import nn
from typing_extensions import override

from fedmoe.clients.algorithms.base import LocalAlgorithm
from fedmoe.clients.algorithms.mixture import PRIOR, gather_evidence
from fedmoe.data.federation import Task
from fedmoe.errors import ConfigError
from fedmoe.models import Parameters, PriorRouter, build_mixture
from fedmoe.schema import FedEmConfig, ModelConfig
from fedmoe.training.cohort import Trained
from fedmoe.training.posteriors import fit_prior

if TYPE_CHECKING:
    from fedmoe.clients.job import Job

# What keeps a proportion above 0, in samples: so little that the numbers are the paper's.
_PSEUDO_COUNT = 1e-3


class FedEm(LocalAlgorithm):
    """Components are shared; pi_k is private.

    Attributes:
        config: how many components.
    """

    def __init__(self, config: FedEmConfig) -> None:
        self.config = config

    @override
    def build(self, config: ModelConfig, task: Task, seed: int) -> nn.Module:
        """A mixture whose components are models as configured."""
        if task.kind != "classification":
            raise ConfigError(f"strategy=fedem: needs classes, but the task is {task.kind}")
        experts = self.config.num_components
        router = PriorRouter(num_experts=experts, gate=False)
        return build_mixture(config, task, seed, router=router, combine="probabilities")

    @override
    def private_names(self, model: nn.Module) -> frozenset[str]:
        return frozenset({PRIOR})

    @override
    def train(self, job: "Job", start: Parameters) -> Trained:
        """One E step, then local training with pi_k as it is."""
        return job.train(self._expect(job, start), frozen=frozenset({PRIOR}))

    @override
    def shared_model(self, job: "Job") -> Parameters | None:
        """The components in equal proportions."""
        return job.start_afresh()

    @override
    def personal_model(self, job: "Job", start: Parameters) -> Parameters | None:
        return self._expect(job, start)

    def _expect(self, job: "Job", params: Parameters) -> Parameters:
        """The E step; components that were not sent keep their shares of all."""
        found = gather_evidence(job, params)
        share_C1 = params[PRIOR].logsumexp(dim=-1, keepdim=True)
        prior_CE = fit_prior(
            found.log_likelihood_CEn, found.gate_logits_CEn,
            params[PRIOR].expand(len(job.clients), -1), found.real_Cn,
            iterations=1, pseudo_count=_PSEUDO_COUNT,
        )  # fmt: skip
        return {**params, PRIOR: prior_CE + share_C1}
