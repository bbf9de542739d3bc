"""How far replies are from what was sent: a finite update that is far too long wrecks an average.

Letters: C replies, P of them in one part, E experts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message
from numpy.typing import NDArray
from torch import Tensor

from fedmoe.data.federation import Ints
from fedmoe.messages import words
from fedmoe.messages.arrays import Stack, tensors_of
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.replies import Replies
from fedmoe.models.base import Parameters
from fedmoe.schema import RuntimeBase

FEWEST = 5  # updates that are not nothing, from which on their median says what is usual


def too_far(replies: Replies, config: RuntimeBase) -> dict[int, str]:
    """Who sends an update that is longer than the limits allow.

    An update's length is the L2 norm of all its floating-point numbers together, as a difference
    from what this client was sent. Those of which only a mean is left, or whose shapes are not
    those that were sent, have none.

    Args:
        replies: to a training phase, otherwise good.
        config: `max_update_norm` and `max_update_ratio`.

    Returns:
        The reason by node id.
    """
    if config.max_update_norm is None and config.max_update_ratio is None:
        return {}
    length_C = update_lengths(replies)
    moved_C = length_C > 0
    usual = float(np.median(length_C[moved_C])) if moved_C.sum() >= FEWEST else None
    most = np.inf if config.max_update_norm is None else config.max_update_norm
    ratio = np.inf if config.max_update_ratio is None else config.max_update_ratio
    with np.errstate(over="ignore"):
        limit = most if usual is None else min(most, ratio * usual)
    nodes = replies.nodes
    return {
        nodes[place]: _reason(length_C[place], usual, most, ratio)
        for place in np.flatnonzero(length_C > limit).tolist()
    }


def _reason(length: float, usual: float | None, most: float, ratio: float) -> str:
    if length > most:
        return f"its update is {length:.3g} long, at most {most:g} is allowed"
    return (
        f"its update is {length:.3g} long, the round's median is {usual:.3g}; at most {ratio:g} "
        "times that is allowed"
    )


def update_lengths(replies: Replies) -> NDArray[np.float64]:
    """How long each update is, (C,); NaN for those that have no length (see `too_far`)."""
    length_C, group_C = np.full(len(replies), np.nan), np.full(len(replies), -1)
    sent = _arrays_sent(replies.requests)
    for group, (_, rows) in enumerate(sent):
        group_C[rows] = group
    for part in replies.parts:
        record = part.records.get(words.ARRAYS)
        if isinstance(record, Stack):
            index = _index(part.records.get(words.EXPERTS))
            for group in np.unique(group_C[part.rows]).tolist():
                if group >= 0:
                    places = np.flatnonzero(group_C[part.rows] == group)
                    own = record if len(places) == len(part.rows) else record.take(places)
                    chosen = index if index is None else index[torch.from_numpy(places)]
                    before = tensors_of(sent[group][0])
                    length_C[part.rows[places]] = lengths(own.tensors, before, chosen)
    for row, message in replies.plain.items():
        came = message.content.get(words.ARRAYS) if message.has_content() else None
        if isinstance(came, ArrayRecord) and group_C[row] >= 0:
            index = _index(message.content.get(words.EXPERTS))
            alone = {name: tensor[None] for name, tensor in tensors_of(came).items()}
            before = tensors_of(sent[group_C[row]][0])
            length_C[row] = lengths(alone, before, index if index is None else index[None])[0]
    return length_C


def _index(told: object) -> Tensor | None:
    """Which experts came back, if that is told."""
    if isinstance(told, Stack):
        return told.tensors.get("index")
    return tensors_of(told).get("index") if isinstance(told, ArrayRecord) else None


def _arrays_sent(requests: Sequence[Message]) -> list[tuple[ArrayRecord, Ints]]:
    """The distinct arrays that were sent, each with the rows of those who got it."""
    if isinstance(requests, Broadcast):
        found = requests.sent_records(words.ARRAYS)
        return [(record, rows) for record, rows in found if isinstance(record, ArrayRecord)]
    groups: dict[int, tuple[ArrayRecord, list[int]]] = {}
    for row, message in enumerate(requests):
        record = message.content.get(words.ARRAYS)
        if isinstance(record, ArrayRecord):
            groups.setdefault(id(record), (record, []))[1].append(row)
    return [(record, np.array(rows)) for record, rows in groups.values()]


def lengths(
    came_P: Mapping[str, Tensor], sent: Parameters, index_P1: Tensor | None = None
) -> NDArray[Any]:
    """|came - sent|_2 over all floating-point arrays of each client, (P,), in double precision.

    Args:
        came_P: (P, ...) by name.
        sent: (...) by name, the same for all; or (E, ...), of which one came back, (P, 1, ...).
        index_P1: which one, (P, 1).

    Returns:
        NaN where the shapes are others.
    """
    count = len(next(iter(came_P.values()), ()))
    square_P = np.zeros(count)
    for name, tensor in came_P.items():
        before = sent.get(name)
        if before is None or not tensor.is_floating_point():
            continue
        before = before.to(tensor)
        if before.shape != tensor.shape[1:]:
            if not _is_one_of(tensor, before, index_P1):
                return np.full(count, np.nan)
            assert index_P1 is not None
            before = before[index_P1[:, 0].to(before.device)][:, None]
        away = (tensor - before).reshape(count, -1)
        # An overflow is infinite, and so too long.
        norm_P = torch.linalg.vector_norm(away, dim=1, dtype=torch.float64)
        square_P += norm_P.cpu().numpy() ** 2
    return np.sqrt(square_P)


def _is_one_of(tensor: Tensor, before: Tensor, index_P1: Tensor | None) -> bool:
    return (
        index_P1 is not None
        and index_P1.shape == (len(tensor), 1)
        and tensor.shape[1:] == (1, *before.shape[1:])
        and bool(((index_P1 >= 0) & (index_P1 < len(before))).all())
    )
