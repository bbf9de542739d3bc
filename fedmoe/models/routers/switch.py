"""Switch: one expert per sample, and no more samples per expert than it has room for.

Fedus et al., arXiv 2101.03961, section 2.1. While training, an expert takes the first
C = ceil(T / E * capacity_factor) of the T samples of a client's batch that choose it, and the
others are dropped. Deviations: the paper passes a dropped token on through the residual
connection; there is none here, so nobody answers for a dropped sample: its weights, and with them
its outputs, are 0 (equal probabilities under `combine: probabilities`). And there is no capacity
at evaluation, where it would depend on which samples happen to come together.

Letters: C clients (the leading axis, absent for one client), B batch, E experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe.models.routers.base import Router
from fedmoe.models.routing import Routing, StepContext, behind_softmax, one_hot


@dataclass(frozen=True, kw_only=True)
class SwitchRouter(Router):
    """The most probable expert, weighted by its probability; the first of equals.

    Attributes:
        capacity_factor: room for so many times an even share of the batch.
    """

    capacity_factor: float

    @property
    def active(self) -> float:
        """See `Router`."""
        return 1

    def route(
        self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> Routing:
        """See `Router`."""
        logits = self.logits(params, x)
        probs = logits.softmax(dim=-2)
        wanted = one_hot(probs.argmax(dim=-2), self.num_experts, x.dtype)
        chosen = wanted
        if context is not None:
            chosen = wanted * self._has_room(wanted, context.weight)
        return Routing(probs * chosen, probs, chosen, logits, demand=wanted)

    def _has_room(self, wanted: Tensor, weight: Tensor) -> Tensor:
        """(..., E, B): whether the sample is among the first so many that want the expert."""
        real = (weight > 0).unsqueeze(-2)
        room = room_for(weight, self.num_experts, self.capacity_factor)[..., None, None]
        return (wanted * real).cumsum(dim=-1) <= room

    def behind(self, routing: Routing, weight_grad: Tensor, logits_grad: Tensor | None) -> Tensor:
        """See `Router`."""
        found = behind_softmax(weight_grad * routing.chosen, routing.probs)
        return found if logits_grad is None else found.add_(logits_grad)


def room_for(weight: Tensor, num_experts: int, factor: float) -> Tensor:
    """(...): ceil(T / E * factor) samples for each expert, T the samples with (..., B) weight."""
    count = (weight > 0).sum(dim=-1).double()
    # A factor such as 1.1 is not exact: 10 * 1.1 is 11 and not a little more.
    return torch.ceil(count * factor / num_experts - 1e-9)
