"""What is added to a mixture's loss so that its router uses all experts.

Every loss is a number per client, returned and never stored. A client whose samples are of one
kind should not have to spread them over all experts: with `scope="federation"` the load that is
balanced is that of the whole federation, which the server sends (arXiv 2501.11873 does the same
for the batches of one job). Without it, as in a first round, the client's own load serves.

Letters: C clients, B batch, E experts.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedmoe.models.routing import Routing, behind_softmax

_TINY = 1e-12


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
        balance: of Switch's load-balancing loss.
        scope: whose load is balanced.
    """

    balance: float = 0.0
    scope: Literal["local", "federation"] = "local"

    def __bool__(self) -> bool:
        """Whether there is anything to compute."""
        return self.balance != 0.0

    def value(
        self, routing: Routing, weight_CB: Tensor, federation: FederationLoad | None = None
    ) -> Tensor:
        """(C,): the weighted sum of the losses.

        Args:
            routing: of a step, (C, E, B).
            weight_CB: each sample's share of its batch; 0 for padding.
            federation: looked at with `scope="federation"`; `None` means the client's own load.
        """
        total_C = weight_CB.new_zeros(len(weight_CB))
        if self.balance:
            load_CE = self._load(routing, weight_CB, federation)
            total_C = total_C + self.balance * balance_loss(routing.probs, load_CE, weight_CB)
        return total_C

    def logits_gradient(
        self, routing: Routing, weight_CB: Tensor, federation: FederationLoad | None = None
    ) -> Tensor:
        """(C, E, B): the gradient of `value` by `routing.logits`."""
        load_CE = self._load(routing, weight_CB, federation)
        factor = self.balance * load_CE.shape[1]
        probs_grad = load_CE.unsqueeze(2) * (weight_CB * factor).unsqueeze(1)
        return behind_softmax(probs_grad, routing.probs)

    def _load(
        self, routing: Routing, weight_CB: Tensor, federation: FederationLoad | None
    ) -> Tensor:
        if self.scope == "federation" and federation is not None:
            return federation.load_CE
        return load_of(routing.chosen, weight_CB)


def load_of(chosen_CEB: Tensor, weight_CB: Tensor) -> Tensor:
    """(C, E): share of the slots that went to each expert; 0 for a client without samples."""
    load_CE = torch.bmm(chosen_CEB.detach(), weight_CB.unsqueeze(2)).squeeze(2)
    return load_CE / load_CE.sum(dim=1, keepdim=True).clamp_min(_TINY)


def balance_loss(probs_CEB: Tensor, load_CE: Tensor, weight_CB: Tensor) -> Tensor:
    """Switch's load-balancing loss E * sum_e f_e P_e (arXiv 2101.03961, equations 4 to 6).

    1 at even load, up to E / K when everything goes to the same K experts. The gradient flows
    through the probabilities P only.

    Args:
        probs_CEB: of all experts.
        load_CE: f.
        weight_CB: each sample's share of the batch; 0 for padding, sums to 1.
    """
    importance_CE = torch.bmm(probs_CEB, weight_CB.unsqueeze(2)).squeeze(2)
    return probs_CEB.shape[1] * (load_CE * importance_CE).sum(dim=1)
