"""All experts answer with fixed weights: an ensemble, and the control of a mixture without a gate.

Under `combine: probabilities` it is the linear opinion pool (Stone, "The opinion pool", Annals of
Mathematical Statistics 1961); under `combine: outputs` a weighted mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedmoe.models.routers.fixed import FixedRouter
from fedmoe.models.routing import Routing, StepContext, softmax_top_k


@dataclass(frozen=True, kw_only=True)
class EnsembleRouter(FixedRouter):
    """Weights that neither the sample nor training changes.

    Attributes:
        votes: (E,) above 0, in any unit; none are equal votes.
    """

    votes: tuple[float, ...] = ()

    def route(
        self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> Routing:
        """See `Router`."""
        del context
        votes_E = x.new_tensor(self.votes or (1.0,) * self.num_experts)
        logits = votes_E.log().unsqueeze(-1) + self.shared_logits(params, x)
        return softmax_top_k(logits, self.num_experts)
