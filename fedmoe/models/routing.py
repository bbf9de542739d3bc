"""What a router decides, and what it may know of a training step.

Samples lie last and experts second to last: on a CPU a softmax over a last axis shorter than a
vector register takes ten times as long.

Letters: C clients, B batch, E experts, K active experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_FAR = 1e4


class Routing(NamedTuple):
    """A router's decision.

    Attributes:
        weight: (..., E, B) mixing weights, 0 for experts not chosen; they sum to 1 over the
            experts, or to 0 for a sample that was dropped, or (Switch) to the probability of the
            chosen expert.
        probs: (..., E, B) softmax over all experts.
        chosen: (..., E, B) 1 where an expert answers, after capacity; else 0.
        logits: (..., E, B) what `probs` is the softmax of.
        demand: (..., E, B) what counts as load where that is not `chosen`: the choice before
            capacity, or the probability of being chosen under noise.
    """

    weight: Tensor
    probs: Tensor
    chosen: Tensor
    logits: Tensor
    demand: Tensor | None = None


class StepContext(NamedTuple):
    """What a router may know of a training step; evaluation has none.

    Attributes:
        weight: (C, B) each sample's share of its batch; 0 for padding, which takes no capacity
            and is no load.
        key_C: (C,) int64 keys for draws, from (seed, client, round, step): the same for a client
            in any cohort. `None` where no router says that it `wants_keys`.
    """

    weight: Tensor
    key_C: Tensor | None


def softmax_top_k(logits: Tensor, top_k: int) -> Routing:
    """Softmax, keep the K largest, renormalise over those kept (arXiv 1701.06538, section 2.1).

    Softmax over the K largest logits and renormalised softmax over all are the same numbers.

    Args:
        logits: (..., E, B).
        top_k: K, 1 to E. Of equals the first are chosen.
    """
    probs = logits.softmax(dim=-2)
    if top_k == logits.shape[-2]:
        return Routing(probs, probs, torch.ones_like(probs), logits)
    chosen = chosen_top_k(probs, top_k)
    kept = probs * chosen
    return Routing(kept / kept.sum(dim=-2, keepdim=True), probs, chosen, logits)


def softmax_over(logits: Tensor, chosen: Tensor) -> Tensor:
    """(..., E, B): softmax over the chosen logits of each sample; all 0 where none is chosen."""
    is_chosen = chosen > 0
    none = ~is_chosen.any(dim=-2, keepdim=True)  # all serve there, for a softmax of nothing is NaN
    masked = logits.masked_fill(~(is_chosen | none), -torch.inf)
    return masked.softmax(dim=-2) * chosen


def one_hot(index: Tensor, num_experts: int, dtype: torch.dtype) -> Tensor:
    """(..., E, B) 1 for the expert of each sample, from (..., B) numbers of experts."""
    every_E1 = torch.arange(num_experts, device=index.device).unsqueeze(-1)
    return (index.unsqueeze(-2) == every_E1).to(dtype)


def chosen_top_k(score: Tensor, top_k: int) -> Tensor:
    """(..., E, B): 1 for the K largest scores of each sample, else 0; of equals the first."""
    # K maxima are found as fast as by `topk`, which says nothing about equals.
    left = score.detach()
    found = [left.max(dim=-2, keepdim=True).indices]
    for _ in range(top_k - 1):
        left = left.scatter(-2, found[-1], -torch.inf)
        found.append(left.max(dim=-2, keepdim=True).indices)
    return torch.zeros_like(score).scatter(-2, torch.cat(found, dim=-2), 1.0)


def behind_softmax(gradient: Tensor, probs: Tensor) -> Tensor:
    """The gradient by logits, from that by their softmax over the experts.

    Also right for a softmax over the chosen logits alone: it is zero, and takes no part in the
    sum, where an expert was not chosen.

    Args:
        gradient: (..., E, B) by the probabilities.
        probs: (..., E, B).
    """
    return probs * (gradient - (gradient * probs).sum(dim=-2, keepdim=True))


def certain(index: Tensor, num_experts: int, dtype: torch.dtype) -> Routing:
    """The routing that sends each sample to one expert, whatever the gate would say.

    Args:
        index: (..., B) the expert of each sample.
        num_experts: E.
        dtype: of the result.
    """
    chosen = one_hot(index, num_experts, dtype)
    # Finite, so that nobody's 0 * logit is NaN, and far enough for a softmax of exactly 0 and 1.
    return Routing(chosen, chosen, chosen, _FAR * (chosen - 1))
