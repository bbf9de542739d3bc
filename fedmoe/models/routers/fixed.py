"""What routers have in common that are not learnt.

Letters: C clients (the leading axis, absent for one client), B batch, D features, E experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmoe.models.base import Parameters
from fedmoe.models.routers.base import Router
from fedmoe.models.routing import Routing
from fedmoe.models.written import accumulate


@dataclass(frozen=True, kw_only=True)
class FixedRouter(Router):
    """A router without a gate, which no gradient reaches. Its `route` is the subclass's."""

    def parameters(self, num_features: int) -> dict[str, nn.Parameter]:
        """See `Router`: none."""
        del num_features
        return {}

    def shared_logits(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """See `Router`: zero."""
        del params
        return x.new_zeros(*x.shape[:-2], self.num_experts, x.shape[-2])

    def behind(self, routing: Routing, weight_grad: Tensor, logits_grad: Tensor | None) -> Tensor:
        """See `Router`: zero."""
        del routing, logits_grad
        return torch.zeros_like(weight_grad)

    def add_gradient(
        self, logits_grad_CEB: Tensor, x_CBD: Tensor, into: Parameters, keep: float
    ) -> None:
        """See `Router`: zero."""
        del logits_grad_CEB, x_CBD
        for value in into.values():
            accumulate(value, torch.zeros_like(value), keep)

    def knows_derivative(self) -> bool:
        """Always: it is zero."""
        return True
