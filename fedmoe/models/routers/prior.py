"""A gate that all clients share, under a prior over the experts that is each client's own.

softmax(phi(x) + log pi): phi is trained by all, log pi never leaves the client. Without phi it is
the mixture of FedEM (arXiv 2108.10252, section 3), whose weights depend on the client alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmoe.models.base import Parameters
from fedmoe.models.routers.base import Router
from fedmoe.models.written import accumulate


@dataclass(frozen=True, kw_only=True)
class PriorRouter(Router):
    """Softmax over all experts of a shared gate plus a private log prior.

    Attributes:
        gate: whether there is a shared gate at all.
    """

    gate: bool = True

    @property
    def undecayed(self) -> frozenset[str]:
        """See `Router`."""
        return frozenset({"prior"})

    def parameters(self, num_features: int) -> dict[str, nn.Parameter]:
        """See `Router`; the prior starts uniform."""
        prior = {"prior": nn.Parameter(torch.zeros(self.num_experts))}
        return {**super().parameters(num_features), **prior} if self.gate else prior

    def shared_logits(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """See `Router`; zero without a gate."""
        if self.gate:
            return super().shared_logits(params, x)
        prior = params["prior"]
        return torch.zeros_like(prior).unsqueeze(-1).expand(*prior.shape, x.shape[-2])

    def logits(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """See `Router`."""
        return self.shared_logits(params, x) + params["prior"].unsqueeze(-1)

    def add_gradient(
        self, logits_grad_CEB: Tensor, x_CBD: Tensor, into: Parameters, keep: float
    ) -> None:
        """See `Router`."""
        total_CE = logits_grad_CEB.sum(dim=2)
        accumulate(into["prior"], total_CE, keep)
        if self.gate:
            into["weight"].baddbmm_(logits_grad_CEB, x_CBD, beta=keep)
            accumulate(into["bias"], total_CE, keep)
