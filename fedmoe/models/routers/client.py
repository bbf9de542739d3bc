"""One expert per client, as in IFCA (arXiv 2006.04088): all its samples go to it.

Which one is for the client to say, by scores of its own that no gradient reaches.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmoe.models.base import Parameters
from fedmoe.models.routers.base import Router
from fedmoe.models.routing import Routing, StepContext, certain
from fedmoe.models.written import accumulate


@dataclass(frozen=True, kw_only=True)
class ClientRouter(Router):
    """The expert with the highest of the client's scores; the first of equals."""

    def parameters(self, num_features: int) -> dict[str, nn.Parameter]:
        """See `Router`: the scores, which start equal."""
        del num_features
        return {"assignment": nn.Parameter(torch.zeros(self.num_experts))}

    def route(
        self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> Routing:
        """See `Router`."""
        del context
        best = params["assignment"].argmax(dim=-1, keepdim=True)
        return certain(best.expand(*best.shape[:-1], x.shape[-2]), self.num_experts, x.dtype)

    def shared_logits(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """See `Router`: zero, for nothing is shared."""
        scores = params["assignment"]
        return torch.zeros_like(scores).unsqueeze(-1).expand(*scores.shape, x.shape[-2])

    def behind(self, routing: Routing, weight_grad: Tensor, logits_grad: Tensor | None) -> Tensor:
        """See `Router`: a choice has no gradient."""
        del routing, logits_grad
        return torch.zeros_like(weight_grad)

    def add_gradient(
        self, logits_grad_CEB: Tensor, x_CBD: Tensor, into: Parameters, keep: float
    ) -> None:
        """See `Router`."""
        del logits_grad_CEB, x_CBD
        accumulate(into["assignment"], torch.zeros_like(into["assignment"]), keep)
