"""Noisy top-k gating (Shazeer et al., arXiv 1701.06538, equations 3 to 5).

H_i = (x W_g)_i + N(0, 1) * softplus((x W_noise)_i) while training, and the K largest answer by
their softmax. Deviations: the gate has a bias as our other gates have; the noise has the least
deviation 0.01 of the authors' code (tensor2tensor), so that the load's derivative stays finite;
and the draws come from the client's key, so that they do not depend on who else trains.

Letters: C clients (the leading axis, absent for one client), B batch, D features, E experts,
K active experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmoe.models.draws import normals
from fedmoe.models.routers.base import Router
from fedmoe.models.routing import Routing, StepContext, softmax_top_k

_LEAST_NOISE = 1e-2


@dataclass(frozen=True, kw_only=True)
class NoisyRouter(Router):
    """Softmax over the K largest logits, under noise while training.

    Attributes:
        top_k: K, 1 to E.
    """

    top_k: int

    @property
    def wants_keys(self) -> bool:
        """See `Router`."""
        return True

    def parameters(self, num_features: int) -> dict[str, nn.Parameter]:
        """See `Router`; the noise starts at softplus(0) for every sample, as the paper's does."""
        noise = nn.Parameter(torch.zeros(self.num_experts, num_features))
        return {**super().parameters(num_features), "noise_weight": noise}

    def route(
        self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> Routing:
        """See `Router`."""
        clean = self.logits(params, x)
        if context is None:
            return softmax_top_k(clean, self.top_k)
        assert context.key_C is not None
        deviation = functional.softplus(params["noise_weight"] @ x.mT) + _LEAST_NOISE
        draws = normals(context.key_C, self.num_experts, x.shape[-2]).to(x.dtype)
        noisy = clean + draws * deviation
        routing = softmax_top_k(noisy, self.top_k)
        return routing._replace(demand=self._demand(routing, clean, deviation))

    def _demand(self, routing: Routing, clean: Tensor, deviation: Tensor) -> Tensor:
        """The probability of being among the K largest were one's own noise drawn again.

        P(x, i) of the paper's appendix A: Phi((clean_i - kth_excluding_i) / deviation_i).
        """
        if self.top_k == self.num_experts:
            return torch.ones_like(clean)
        largest = routing.logits.topk(self.top_k + 1, dim=-2).values
        kth, next_one = largest[..., -2:-1, :], largest[..., -1:, :]
        threshold = torch.where(routing.chosen > 0, next_one, kth)
        demand: Tensor = torch.special.ndtr((clean - threshold) / deviation)
        return demand
