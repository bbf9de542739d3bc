"""Expert choice: experts choose their samples, so their load is even by construction.

Zhou et al., arXiv 2202.09368, section 3.2: of the T samples of a batch each expert takes the
k = T * c / E with its highest scores, softmax over the experts. Deviations: k is rounded up; the
weights of the experts that took a sample are renormalised to sum to 1, since without a residual
connection a sample that few experts took would shrink; a sample that nobody took has weight 0
everywhere (see `switch`).

A caveat: the choice compares the samples of one batch, and of one client. It cannot be made for a
sample alone (in a batch of one, every expert takes it), and whoever makes it at evaluation lets
test samples see each other. At evaluation, therefore, the `top_k` most probable experts answer;
training and evaluation differ by that.

Letters: C clients (the leading axis, absent for one client), B batch, E experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedmoe.models.routers.base import Router
from fedmoe.models.routers.switch import room_for
from fedmoe.models.routing import Routing, StepContext, softmax_over, softmax_top_k


@dataclass(frozen=True, kw_only=True)
class ExpertChoiceRouter(Router):
    """Each expert takes the samples that suit it best; of equals the first in the batch.

    Attributes:
        capacity_factor: c, experts per sample on average while training.
        top_k: experts per sample at evaluation, 1 to E.
    """

    capacity_factor: float
    top_k: int

    @property
    def active(self) -> float:
        """See `Router`."""
        return max(self.capacity_factor, self.top_k)

    def route(
        self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> Routing:
        """See `Router`."""
        logits = self.logits(params, x)
        if context is None:
            return softmax_top_k(logits, self.top_k)
        probs = logits.softmax(dim=-2)
        real = (context.weight > 0).unsqueeze(-2)
        score = probs.detach().masked_fill(~real, -1.0)
        order = score.argsort(dim=-1, descending=True, stable=True)
        rank = order.argsort(dim=-1)
        room = room_for(context.weight, self.num_experts, self.capacity_factor)[..., None, None]
        chosen = ((rank < room) & real).to(probs.dtype)
        return Routing(softmax_over(logits, chosen), probs, chosen, logits)

    behind = Router.behind  # that of a softmax over the chosen logits
