"""Softmax top-k: the K most probable experts answer (arXiv 1701.06538, section 2.1).

Without the paper's noise, which is in `noisy`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedmoe.models.routers.base import Router
from fedmoe.models.routing import Routing, StepContext, softmax_top_k


@dataclass(frozen=True, kw_only=True)
class SoftmaxRouter(Router):
    """Softmax over the K largest logits.

    Attributes:
        top_k: K, 1 to E.
    """

    top_k: int

    @property
    def active(self) -> float:
        """See `Router`."""
        return self.top_k

    def route(
        self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> Routing:
        """See `Router`."""
        del context
        return softmax_top_k(self.logits(params, x), self.top_k)

    behind = Router.behind  # that of a softmax over the chosen logits
