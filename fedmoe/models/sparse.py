"""Each expert on its own samples only, where that is quicker than all experts on all of them.

The samples of every pair of a client and one of its experts are laid side by side, padded to the
most that any pair has, and the pairs run as the experts' written pass runs clients. The numbers
are those of the dense pass but for rounding. `docs/results/sparse.md` has what was measured, and
from it the rule of `pays`.

Letters: C clients, E experts, B batch, D features, O outputs, P pairs of a client and an expert,
M most samples of a pair, T samples of all pairs together.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe.models.base import Parameters
from fedmoe.models.written import Kernel, Pass

# Sparse work may be so much of the dense, which runs in larger and fewer products; and so many
# multiplications must be saved before laying out the samples has paid for itself.
_LARGEST_SHARE, _LEAST_SAVED = 0.4, 4e6


def may_pay(active: float, num_experts: int) -> bool:
    """Whether it could pay, were the samples spread evenly; see `Router.active`."""
    return active <= _LARGEST_SHARE * num_experts


def pays(dense: float, sparse: float) -> bool:
    """Whether to run sparse, for so many multiplications of the forward pass each way."""
    return sparse <= _LARGEST_SHARE * dense and dense - sparse >= _LEAST_SAVED


@dataclass(frozen=True)
class Layout:
    """Where the samples of each pair lie.

    Attributes:
        pair_P: number c E + e of each pair that runs, rising.
        most: M.
        client_T, expert_T, sample_T: who answers for which sample.
        slot_T: where that is among the P M places of the pairs.
    """

    pair_P: Tensor
    most: int
    client_T: Tensor
    expert_T: Tensor
    sample_T: Tensor
    slot_T: Tensor


def layout_of(chosen_CEB: Tensor, size: float) -> Layout | None:
    """Lay out the samples, or return `None` where dense is quicker.

    Args:
        chosen_CEB: 1 where an expert answers for a sample.
        size: parameters of an expert, which is what a sample costs in multiplications.
    """
    clients, experts, batch = chosen_CEB.shape
    if chosen_CEB.device.type != "cpu" or clients * experts * batch * size < _LEAST_SAVED:
        return None  # elsewhere looking at the counts would wait for the device
    count_P = chosen_CEB.sum(dim=2).flatten().long()
    most, used_P = int(count_P.max()), count_P > 0
    # Taking pairs out costs copies of their parameters, so few idle ones stay.
    pair_P = torch.arange(len(count_P))
    if 2 * int(used_P.sum()) <= len(count_P):
        pair_P = used_P.nonzero().squeeze(1)
    if not pays(clients * experts * batch * size, len(pair_P) * most * size):
        return None
    client_T, expert_T, sample_T = chosen_CEB.nonzero().unbind(1)
    number_T = client_T * experts + expert_T
    first_P = count_P.cumsum(dim=0) - count_P
    place_T = torch.arange(len(number_T)) - first_P[number_T]
    rank_P = torch.zeros_like(count_P).index_copy(0, pair_P, torch.arange(len(pair_P)))
    return Layout(pair_P, most, client_T, expert_T, sample_T, rank_P[number_T] * most + place_T)


class SparsePass:
    """A pass of (C, E, ...) parameters whose experts see their own samples; see `Pass`.

    `y_COB` is (C, E, O, B), zero where an expert does not answer.
    """

    routing = None

    def __init__(
        self, kernel: Kernel, params: Mapping[str, Tensor], x_CBD: Tensor, layout: Layout
    ) -> None:
        """Run the pairs.

        Args:
            kernel: of one expert, for parameters with the pairs first.
            params: of all experts.
            x_CBD: all samples.
            layout: who sees which.
        """
        self.layout = layout
        clients, batch, _ = x_CBD.shape
        self.shape = (clients, next(iter(params.values())).shape[1])
        # Places that are left hold the client's own first sample, with no part in anything.
        source = (layout.pair_P // self.shape[1] * batch).repeat_interleave(layout.most)
        source = source.index_copy(0, layout.slot_T, layout.client_T * batch + layout.sample_T)
        x_PMD = x_CBD.flatten(0, 1).index_select(0, source).view(-1, layout.most, x_CBD.shape[2])
        self.all_pairs = len(layout.pair_P) == clients * self.shape[1]
        self.inner: Pass = kernel({name: self._own(p) for name, p in params.items()}, x_PMD)
        y_TO = self.inner.y_COB.mT.flatten(0, 1).index_select(0, layout.slot_T)
        self.y_COB = x_CBD.new_zeros(*self.shape, y_TO.shape[1], batch)
        self.y_COB[layout.client_T, layout.expert_T, :, layout.sample_T] = y_TO

    def backward(
        self, y_grad_COB: Tensor, logits_grad_CEB: Tensor | None, into: Parameters, keep: float
    ) -> None:
        """See `Pass`."""
        layout, outputs = self.layout, y_grad_COB.shape[2]
        grad_TO = y_grad_COB[layout.client_T, layout.expert_T, :, layout.sample_T]
        grad = grad_TO.new_zeros(len(layout.pair_P) * layout.most, outputs)
        grad_POM = grad.index_copy_(0, layout.slot_T, grad_TO).view(-1, layout.most, outputs).mT
        flat = {name: value.view(-1, *value.shape[2:]) for name, value in into.items()}
        if self.all_pairs:
            self.inner.backward(grad_POM, logits_grad_CEB, flat, keep)
            return
        found = {
            name: value.new_empty(len(layout.pair_P), *value.shape[1:])
            for name, value in flat.items()
        }
        self.inner.backward(grad_POM, logits_grad_CEB, found, 0.0)
        for name, value in flat.items():
            if keep != 1.0:  # what was there may be anything, where it is not kept
                value.mul_(keep) if keep else value.zero_()
            value.index_add_(0, layout.pair_P, found[name])

    def _own(self, value: Tensor) -> Tensor:
        """A parameter of all experts, (C, E, ...), as one of the pairs, (P, ...)."""
        flat = value.flatten(0, 1)
        return flat if self.all_pairs else flat.index_select(0, self.layout.pair_P)
