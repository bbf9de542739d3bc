"""Routers: which experts answer for a sample, and with what weight.

Letters: C clients, B batch, E experts, K active experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Routing(NamedTuple):
    """A router's decision.

    Attributes:
        weight: (..., E) mixing weights, zero for experts not chosen; sum to 1.
        probs: (..., E) softmax over all experts.
        chosen: (..., E) 1 for the K chosen experts, else 0.
    """

    weight: Tensor
    probs: Tensor
    chosen: Tensor


def softmax_top_k(logits: Tensor, top_k: int, dim: int = -1) -> Routing:
    """Softmax, keep the K largest, renormalise over those kept (arXiv 1701.06538, section 2.1).

    Softmax over the K largest logits and renormalised softmax over all are the same numbers.

    Args:
        logits: (..., E), or with the experts on another axis.
        top_k: K, 1 to E. Ties are broken by `torch.topk`.
        dim: the axis of the experts.
    """
    probs = logits.softmax(dim=dim)
    if top_k == logits.shape[dim]:
        return Routing(probs, probs, torch.ones_like(probs))
    index = probs.topk(top_k, dim=dim).indices
    chosen = torch.zeros_like(probs).scatter(dim, index, 1.0)
    kept = probs * chosen
    return Routing(kept / kept.sum(dim=dim, keepdim=True), probs, chosen)


def behind_softmax(gradient: Tensor, probs: Tensor) -> Tensor:
    """The gradient by logits, from that by their softmax over dimension 1.

    Also right for `Routing.weight`, the softmax over the chosen logits alone: it is zero, and
    takes no part in the sum, where an expert was not chosen.

    Args:
        gradient: (C, E, B) by the probabilities.
        probs: (C, E, B).
    """
    return probs * (gradient - (gradient * probs).sum(dim=1, keepdim=True))


def balance_loss(probs: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    """Switch's load-balancing loss E * sum_e f_e P_e (arXiv 2101.03961, equations 4 to 6).

    1 at even load, up to E / K when everything goes to the same K experts. The gradient flows
    through the probabilities P only.

    Args:
        probs: (..., B, E).
        chosen: (..., B, E), 0 or 1.
        weight: (..., B) each sample's share of the batch; 0 for padding, sums to 1.

    Returns:
        (...): one loss per client.
    """
    load = torch.einsum("...b,...be->...e", weight, chosen.detach())
    load = load / load.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    importance = torch.einsum("...b,...be->...e", weight, probs)
    return probs.shape[-1] * (load * importance).sum(dim=-1)


def balance_gradient(chosen_CEB: Tensor, weight_CB: Tensor) -> Tensor:
    """The gradient of `balance_loss` by the probabilities: (C, E, B), E f_e w_b."""
    load_CE1 = torch.bmm(chosen_CEB, weight_CB.unsqueeze(2))
    load_CE1 = load_CE1 / load_CE1.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return load_CE1 * (weight_CB * chosen_CEB.shape[1]).unsqueeze(1)
