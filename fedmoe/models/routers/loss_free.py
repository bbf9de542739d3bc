"""Load balancing without a loss: a bias that is moved by hand decides who is chosen.

Wang et al., arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437, section 2.1.2. The K experts with
the largest s_i + b_i answer, weighted by their s_i alone, so that b disturbs no gradient. After a
step, here a round of the federation, b_i rises by u where an expert had less than its share and
falls where it had more. Deviations: s is the softmax over all experts, as everywhere here
(DeepSeek-V3 takes the sigmoid), and, as in DeepSeek-V3, s is renormalised over those chosen.

Letters: C clients (the leading axis, absent for one client), E experts, K active experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmoe.models.base import Parameters
from fedmoe.models.routers.base import Router
from fedmoe.models.routing import Routing, StepContext, chosen_top_k, softmax_over
from fedmoe.models.written import accumulate


@dataclass(frozen=True, kw_only=True)
class LossFreeRouter(Router):
    """Softmax top-k with a bias on the choice.

    Attributes:
        top_k: K, 1 to E.
        rate: u, what `balanced_bias` moves the bias by.
    """

    top_k: int
    rate: float = 1e-3

    @property
    def active(self) -> float:
        """See `Router`."""
        return self.top_k

    @property
    def undecayed(self) -> frozenset[str]:
        """See `Router`."""
        return frozenset({"balance_bias"})

    def parameters(self, num_features: int) -> dict[str, nn.Parameter]:
        """See `Router`; no gradient reaches the bias on the choice."""
        bias = nn.Parameter(torch.zeros(self.num_experts))
        return {**super().parameters(num_features), "balance_bias": bias}

    def route(
        self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> Routing:
        """See `Router`."""
        del context
        logits = self.logits(params, x)
        probs = logits.softmax(dim=-2)
        score = probs.detach() + params["balance_bias"].detach().unsqueeze(-1)
        chosen = chosen_top_k(score, self.top_k)
        return Routing(softmax_over(logits, chosen), probs, chosen, logits)

    behind = Router.behind  # that of a softmax over the chosen logits

    def add_gradient(
        self, logits_grad_CEB: Tensor, x_CBD: Tensor, into: Parameters, keep: float
    ) -> None:
        """See `Router`."""
        super().add_gradient(logits_grad_CEB, x_CBD, into, keep)
        accumulate(into["balance_bias"], torch.zeros_like(into["balance_bias"]), keep)


def balanced_bias(bias_E: Tensor, load_E: Tensor, rate: float) -> Tensor:
    """b_e + u sign(mean load - load_e): less for whoever had too much.

    Args:
        bias_E: (..., E) before.
        load_E: (..., E) slots or share of them that went to each expert.
        rate: u.
    """
    return bias_E + rate * (load_E.mean(dim=-1, keepdim=True) - load_E).sign()
