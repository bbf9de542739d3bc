"""One expert per client, as in IFCA (arXiv 2006.04088): all its samples go to it.

Which one is for the client to say, by scores of its own that no gradient reaches. The paper's
client takes the model of the lowest loss; whoever trains one writes that into the scores.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmoe.models.routers.fixed import FixedRouter
from fedmoe.models.routing import Routing, StepContext, certain


@dataclass(frozen=True, kw_only=True)
class ClientRouter(FixedRouter):
    """The expert with the highest of the client's scores; the first of equals."""

    @property
    def active(self) -> float:
        """See `Router`."""
        return 1

    @property
    def undecayed(self) -> frozenset[str]:
        """See `Router`."""
        return frozenset({"assignment"})

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
