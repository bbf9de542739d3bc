"""What is added to a mixture's loss so that its router uses all experts.

Every loss is a number per client, returned and never stored. A client whose samples are of one
kind should not have to spread them over all experts: with `scope="federation"` the load that is
evened out is that of the whole federation, which the server sends (arXiv 2501.11873 does the same
for the batches of one job). Without it, as in a first round, the client's own load serves.

Letters: C clients, B batch, E experts.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedmoe.models.routing import Routing, behind_softmax

TINY = 1e-12


class FederationLoad(NamedTuple):
    """How the whole federation used its experts, as each client was told.

    Attributes:
        load_CE: share of routing slots; sums to 1 over the experts.
        importance_CE: mean of the router's probabilities; sums to 1 over the experts.
    """

    load_CE: Tensor
    importance_CE: Tensor


@dataclass(frozen=True, kw_only=True)
class RouterLosses:
    """Weights of the losses; 0 leaves one out.

    Attributes:
        importance: of CV² of the experts' mean probabilities. Shazeer et al. (arXiv 1701.06538,
            equation 7) sum the sparse mixing weights instead; as in V-MoE (arXiv 2106.05974,
            appendix A), the probabilities of all experts serve, so that an expert which nobody
            chose has a gradient that can bring it back.
        load: of CV² of the experts' load (arXiv 1701.06538, equation 11). Under a noisy router
            the load is the paper's smooth one; any other is a count, which has a value but no
            gradient.
        balance: of Switch's load-balancing loss (arXiv 2101.03961, equations 4 to 6).
        z: of the mean squared log-sum-exp of the logits (ST-MoE, arXiv 2202.08906, equation 5).
        scope: whose load and importance are evened out. CV² of the federation's is taken to first
            order in the client's own: the client cannot see what the others do meanwhile.
    """

    importance: float = 0.0
    load: float = 0.0
    balance: float = 0.0
    z: float = 0.0
    scope: Literal["local", "federation"] = "local"

    def __bool__(self) -> bool:
        """Whether there is anything to compute."""
        return any((self.importance, self.load, self.balance, self.z))

    def value(
        self, routing: Routing, weight_CB: Tensor, federation: FederationLoad | None = None
    ) -> Tensor:
        """(C,): the weighted sum of the losses; 0 for a client without samples.

        Args:
            routing: of a step, (C, E, B).
            weight_CB: each sample's share of its batch; 0 for padding.
            federation: looked at with `scope="federation"`; `None` means the client's own.
        """
        known = federation if self.scope == "federation" else None
        total_C = weight_CB.new_zeros(len(weight_CB))
        load_CE = share_of(_demand(routing), weight_CB)
        importance_CE = share_of(routing.probs, weight_CB)
        if self.importance:
            told_CE = None if known is None else known.importance_CE
            total_C = total_C + self.importance * variation(importance_CE, told_CE)
        if self.load:
            told_CE = None if known is None else known.load_CE
            total_C = total_C + self.load * variation(load_CE, told_CE)
        if self.balance:
            other_CE = load_CE.detach() if known is None else known.load_CE
            total_C = total_C + self.balance * balance_loss(importance_CE, other_CE)
        if self.z:
            total_C = total_C + self.z * z_loss(routing.logits, weight_CB)
        return total_C

    def logits_gradient(
        self, routing: Routing, weight_CB: Tensor, federation: FederationLoad | None = None
    ) -> Tensor:
        """(C, E, B): the gradient of `value` by `routing.logits`, where loads are counts."""
        known = federation if self.scope == "federation" else None
        weight_C1B = weight_CB.unsqueeze(1)
        load_CE = share_of(_demand(routing), weight_CB) if known is None else known.load_CE
        slope_CE = load_CE * (self.balance * load_CE.shape[1])  # by the mean probabilities
        if self.importance:
            at_CE = share_of(routing.probs, weight_CB) if known is None else known.importance_CE
            slope_CE += self.importance * variation_slope(at_CE)
        found = behind_softmax(slope_CE.unsqueeze(2) * weight_C1B, routing.probs)
        if self.z:
            sizes_C1B = routing.logits.logsumexp(dim=1, keepdim=True)
            found += routing.probs * (2 * self.z * weight_C1B * sizes_C1B)
        return found


def _demand(routing: Routing) -> Tensor:
    return routing.chosen if routing.demand is None else routing.demand


def share_of(values_CEB: Tensor, weight_CB: Tensor) -> Tensor:
    """(C, E): each expert's share of some non-negative values; 0 for a client without samples."""
    total_CE = torch.bmm(values_CEB, weight_CB.unsqueeze(2)).squeeze(2)
    return total_CE / total_CE.sum(dim=1, keepdim=True).clamp_min(TINY)


def variation(share_CE: Tensor, told_CE: Tensor | None = None) -> Tensor:
    """(C,): CV², the squared coefficient of variation over the experts, of shares that sum to 1.

    0 at even shares, E - 1 when one expert has everything. Given the federation's shares, theirs
    plus what the client's own add to first order: CV²(f) + sum_e dCV²/df_e (f) (share_e - f_e).
    """
    has_samples_C = share_CE.detach().sum(dim=1)
    if told_CE is None:
        return share_CE.shape[1] * share_CE.square().sum(dim=1) - has_samples_C
    theirs_C = told_CE.shape[1] * told_CE.square().sum(dim=1) - 1
    # The slope at shares that sum to 1 is perpendicular to them.
    return theirs_C * has_samples_C + (variation_slope(told_CE) * share_CE).sum(dim=1)


def variation_slope(share_CE: Tensor) -> Tensor:
    """(C, E): the derivative of `variation` by the values that the shares are of."""
    away_CE = share_CE - share_CE.square().sum(dim=1, keepdim=True)
    return 2 * share_CE.shape[1] * away_CE


def balance_loss(importance_CE: Tensor, load_CE: Tensor) -> Tensor:
    """(C,): Switch's E * sum_e f_e P_e, of which only P has a gradient.

    1 at even load, up to E / K when everything goes to the same K experts.

    Args:
        importance_CE: P, the mean probabilities.
        load_CE: f, the share of slots.
    """
    return importance_CE.shape[1] * (load_CE * importance_CE).sum(dim=1)


def z_loss(logits_CEB: Tensor, weight_CB: Tensor) -> Tensor:
    """(C,): mean squared log-sum-exp, which keeps logits small."""
    return (weight_CB * logits_CEB.logsumexp(dim=1).square()).sum(dim=1)
