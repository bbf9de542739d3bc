"""The sums from which a round's router metrics are made, taken by clients on their own samples.

Letters: C clients, B samples of each, padded; A models, which are C, or 1 where all clients share
one; S samples of a model, which are B, or C B; E experts, O outputs (classes), T totals.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedmoe.data.drawing import hash_keys
from fedmoe.data.federation import Ints
from fedmoe.models.combining import Combine
from fedmoe.models.router_metrics import MOST, RouterKind
from fedmoe.models.routing import Routing

UNKNOWN = -1  # the main expert of a sample that was never routed
_TINY = 1e-30  # squared length below which an answer is 0
_STREAM = 0x524F5554  # draws apart from those of training


class Routed(NamedTuple):
    """What became of the clients' samples, in the layout in which the models ran.

    Attributes:
        routing: who answered, (A, E, S) each.
        answers: (A, E, O, S) each expert's own outputs, or `None` if they are not to be had.
        target_CB: classes (C, B), or targets (C, B, O).
        real_CB: which samples are not padding.
        error_CB: of the model's answer: 1 if it is wrong; squared error in a regression.
        main_CB: int16 which expert weighs most in each answer, see `main_experts`.
        earlier_CB: `main_CB` at the last evaluation.
        order_AES: see `random_order`.
    """

    routing: Routing
    answers: Tensor | None
    target_CB: Tensor
    real_CB: Tensor
    error_CB: Tensor
    main_CB: Tensor
    earlier_CB: Tensor
    order_AES: Tensor

    def by_client(self, part: Tensor) -> Tensor:
        """(A, ..., S) as (C, ..., B), without a copy."""
        clients, batch = self.real_CB.shape
        if len(part) == clients:
            return part
        return part.view(*part.shape[1:-1], clients, batch).movedim(-2, 0)


def random_order(
    seed: int, client_C: Ints, samples: int, experts: int, *, shared: bool = False
) -> Tensor:
    """For each sample an order of the experts, drawn uniformly.

    It depends on the seed, the client and the sample alone: rounds are compared under the same
    draws, and a client alone has the draws that it has in a cohort.

    Args:
        seed: of the experiment.
        client_C: the clients.
        samples: B.
        experts: E.
        shared: whether the clients share one model.

    Returns:
        (C, E, B), or (1, E, C B) if shared.
    """
    return _random_order(seed, client_C.tobytes(), samples, experts, shared)


@lru_cache(maxsize=16)  # the same clients are evaluated round after round
def _random_order(seed: int, clients: bytes, samples: int, experts: int, shared: bool) -> Tensor:
    client_C11 = np.frombuffer(clients, dtype=np.int64)[:, None, None]
    keys_CEB = hash_keys(seed, _STREAM, client_C11, np.arange(samples), np.arange(experts)[:, None])
    order_CEB = torch.from_numpy(keys_CEB.argsort(axis=1))
    return order_CEB.movedim(0, 1).flatten(1).unsqueeze(0) if shared else order_CEB


def main_experts(routing: Routing, like_CB: Tensor) -> Tensor:
    """Which expert weighs most in each answer, the first of equals; `UNKNOWN` if none answered.

    Returns:
        (C, B) int16, as `like_CB` has samples.
    """
    best_AS = routing.weight.max(dim=-2)
    main_AS = torch.where(best_AS.values > 0, best_AS.indices, UNKNOWN)
    return main_AS.view_as(like_CB).to(torch.int16)


def router_sums(routed: Routed, kind: RouterKind, combine: Combine) -> Tensor:
    """Each client's sums over its real samples, (C, J) in the order of `RouterKind.split`.

    Args:
        routed: what became of them.
        kind: of the model.
        combine: how the model makes one answer of the experts'.
    """
    weight_AES = routed.routing.weight
    like_A1S = weight_AES[:, :1]
    rows = [row.view_as(like_A1S) for row in _totals(routed, kind, combine)]
    all_AXS = torch.cat([weight_AES, routed.routing.chosen, *rows], dim=1)
    # Padding is somebody else's sample, and may hold anything: 0 times NaN is not 0.
    all_AXS = all_AXS.where(routed.real_CB.view_as(like_A1S), 0.0)
    # One product: the sums by class of everything, of which the weights stay by class.
    sums_COX = torch.bmm(_members(routed, kind), routed.by_client(all_AXS).mT)
    weights_COE, others_COX = sums_COX.tensor_split([kind.num_experts], dim=2)
    # Only rounding makes a sum negative.
    return torch.cat([others_COX.sum(dim=1), weights_COE.flatten(1)], dim=1).clamp_min_(0.0)


def _members(routed: Routed, kind: RouterKind) -> Tensor:
    """Which class each sample is of, (C, O, B); a regression has one for all."""
    weight_AES = routed.routing.weight
    if not kind.has_classes:
        return torch.ones_like(routed.real_CB, dtype=weight_AES.dtype).unsqueeze(1)
    class_O1 = torch.arange(kind.num_classes, device=weight_AES.device).unsqueeze(1)
    # In the models' layout, where more samples lie side by side: several times as fast.
    member_AOS = routed.target_CB.view(len(weight_AES), 1, -1) == class_O1
    return routed.by_client(member_AOS.to(weight_AES))


def _totals(routed: Routed, kind: RouterKind, combine: Combine) -> list[Tensor]:
    """Each sample's part of `TOTALS`; of padding, anything."""
    main_CB, earlier_CB, error_CB = routed.main_CB, routed.earlier_CB, routed.error_CB
    known_CB = earlier_CB != UNKNOWN
    entropy_AS = torch.special.entr(routed.routing.probs).sum(dim=1)
    found = [main_CB != UNKNOWN, entropy_AS, known_CB, (main_CB != earlier_CB) & known_CB]
    if routed.answers is None:
        return found + [torch.zeros_like(error_CB)] * 3
    random_CB = _random_error(routed, routed.answers, kind, combine)
    return [*found, error_CB, random_CB, _likeness(routed.answers, kind)]


def _random_error(
    routed: Routed, answers_AEOS: Tensor, kind: RouterKind, combine: Combine
) -> Tensor:
    """The error of each sample, (C, B), with its mixing weights dealt out to random experts."""
    weight_AES = routed.routing.weight.gather(1, routed.order_AES)
    y_AOS = combine.mix(answers_AEOS, weight_AES).y
    if kind.has_classes:
        return y_AOS.max(dim=1).indices.view_as(routed.target_CB) != routed.target_CB
    error_CB = (routed.by_client(y_AOS).mT - routed.target_CB).square().mean(dim=2)
    return error_CB.nan_to_num(nan=MOST).clamp_max(MOST)


def _likeness(answers_AEOS: Tensor, kind: RouterKind) -> Tensor:
    """The squared length of the sum of the experts' unit vectors of answers, (A, S).

    Logits are centred first, since a constant added to all classes changes nothing.
    """
    if kind.has_classes:
        answers_AEOS = answers_AEOS - answers_AEOS.mean(dim=2, keepdim=True)
    # Infinite for what an expert makes that nobody uses: such an expert says nothing, as one does
    # whose answer is 0.
    power_AE1S = answers_AEOS.square().sum(dim=2, keepdim=True)
    unit_AEOS = answers_AEOS * power_AE1S.clamp_min_(_TINY).rsqrt_()
    return unit_AEOS.sum(dim=1).square_().sum(dim=1)
