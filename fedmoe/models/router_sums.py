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
_TINY = 1e-30  # of a squared length: below it an expert says nothing
_LARGEST = 1e12  # answer of an expert
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
        answered_CB: which samples were answered.
        earlier_CB: `main_CB` at the last evaluation.
        order_AES: see `random_order`.
    """

    routing: Routing
    answers: Tensor | None
    target_CB: Tensor
    real_CB: Tensor
    error_CB: Tensor
    main_CB: Tensor
    answered_CB: Tensor
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


def main_experts(routing: Routing, real_CB: Tensor) -> tuple[Tensor, Tensor]:
    """Which expert weighs most in each answer, the first of equals.

    Returns:
        (C, B) int16, `UNKNOWN` for a sample that nobody answered and for padding; and (C, B)
        which samples were answered.
    """
    best_AS = routing.weight.max(dim=-2)
    answered_CB = (best_AS.values.view_as(real_CB) > 0) & real_CB
    main_CB = torch.where(answered_CB, best_AS.indices.view_as(real_CB), UNKNOWN)
    return main_CB.to(torch.int16), answered_CB


def router_sums(routed: Routed, kind: RouterKind, combine: Combine) -> Tensor:
    """Each client's sums over its real samples, (C, J) in the order of `RouterKind.split`.

    Args:
        routed: what became of them.
        kind: of the model.
        combine: how the model makes one answer of the experts'.
    """
    weight_AES = routed.routing.weight
    share_CB1 = routed.real_CB.to(weight_AES).unsqueeze(2)
    rows_CTB = _rows(routed, share_CB1, kind, combine)
    pieces = [
        torch.bmm(routed.by_client(routed.routing.chosen), share_CB1),
        torch.bmm(_members(routed, share_CB1, kind), routed.by_client(weight_AES).mT),
        torch.bmm(rows_CTB, share_CB1),
    ]
    return torch.cat([piece.flatten(1) for piece in pieces], dim=1)


def _members(routed: Routed, share_CB1: Tensor, kind: RouterKind) -> Tensor:
    """Which class each real sample is of, (C, O, B); a regression has one for all."""
    if not kind.has_classes:
        return share_CB1.mT
    class_O1 = torch.arange(kind.num_classes, device=share_CB1.device).unsqueeze(1)
    label_CB = torch.where(routed.real_CB, routed.target_CB, -1)
    # In the models' layout, where more samples lie side by side: several times as fast.
    member_AOS = label_CB.view(len(routed.routing.weight), 1, -1) == class_O1
    return routed.by_client(member_AOS.to(share_CB1))


def _rows(routed: Routed, share_CB1: Tensor, kind: RouterKind, combine: Combine) -> Tensor:
    """Each sample's part of the totals, (C, T, B)."""
    error_CB = routed.error_CB
    known_CB = routed.earlier_CB != UNKNOWN
    changed_CB = (routed.main_CB != routed.earlier_CB) & known_CB
    entropy_CB = torch.special.entr(routed.routing.probs).sum(dim=1).view_as(error_CB)
    rows = [routed.answered_CB, entropy_CB, known_CB, changed_CB]
    if routed.answers is None:
        rows += [torch.zeros_like(error_CB)] * 3
    else:
        random_CB = _random_error(routed, routed.answers, kind, combine)
        rows += [error_CB, random_CB, _likeness(routed, routed.answers, share_CB1, kind)]
    return torch.stack(rows, dim=1).to(share_CB1)


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


def _likeness(routed: Routed, answers_AEOS: Tensor, share_CB1: Tensor, kind: RouterKind) -> Tensor:
    """Each sample's part, (C, B), of the square of the sum of the experts' unit vectors.

    An expert's vector is its answers to all of a client's samples. Logits are centred on each
    sample first, since a constant added to all classes changes nothing.
    """
    # What an expert makes that nobody uses may be too large for a square.
    answers_AEOS = answers_AEOS.clamp(-_LARGEST, _LARGEST)
    if kind.has_classes:
        answers_AEOS = answers_AEOS - answers_AEOS.mean(dim=2, keepdim=True)
    power_CEB = routed.by_client(answers_AEOS.square().sum(dim=2))
    scale_CE1 = torch.bmm(power_CEB, share_CB1).clamp_min(_TINY).rsqrt()
    scale_AES = scale_CE1.expand(power_CEB.shape)
    if len(answers_AEOS) < len(power_CEB):
        scale_AES = scale_AES.transpose(0, 1).reshape(1, kind.num_experts, -1)
    total_AOS = (answers_AEOS * scale_AES.unsqueeze(2)).sum(dim=1)
    return total_AOS.square().sum(dim=1).view_as(routed.real_CB)
