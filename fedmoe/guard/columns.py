"""Replies judged as columns: whether any may be bad, without making messages of them.

Letters: P replies of a part.
"""

from collections.abc import Callable, Sequence

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType
from numpy.typing import NDArray

from fedmoe.guard.message_check import MessageCheck
from fedmoe.messages import words
from fedmoe.messages.arrays import Stack
from fedmoe.messages.parts import Part

Doubts = Callable[[Part, Sequence[int]], NDArray[np.bool_]]


def doubtful(
    part: Part, nodes: Sequence[int], request: Message, check: MessageCheck, doubts: Doubts | None
) -> NDArray[np.bool_]:
    """Which replies of a part, (P,), may fail the check of messages; the others would pass it.

    Args:
        part: the replies.
        nodes: whose they are.
        request: what the first of them replies to; the others' requests are of the same shape.
        check: what would judge them as messages.
        doubts: the strategy's `doubtful_replies`, or `None`.
    """
    training = request.metadata.message_type == MessageType.TRAIN
    sent = request.content.get(words.ARRAYS) if training else None
    came = words.ARRAYS in part.means or isinstance(part.records.get(words.ARRAYS), Stack)
    metrics = part.numbers(words.METRICS)
    everyone = np.full(len(part.rows), True)
    if (
        part.bytes_per_reply > check.config.max_reply_bytes
        or words.NUM_EXAMPLES not in metrics
        or isinstance(sent, ArrayRecord) != came
        or (check.routing and not isinstance(part.records.get(words.ROUTING), Stack | None))
    ):
        return everyone
    # A check of the strategy's own wants to see every message, unless it can read columns.
    if training and check.own_check is not None and doubts is None:
        return everyone
    count = metrics[words.NUM_EXAMPLES]
    bad = count < (1 if training else 0)
    for name, values in metrics.items():
        if name.endswith(words.NUM_EXAMPLES):
            if values.dtype.kind != "i":
                return everyone
            bad = bad | (values < 0) | (values > check.config.max_examples)
    for key, record in part.records.items():
        if isinstance(record, Stack):
            if check.expected(sent, key) not in (None, record.signature):
                return everyone
            if key == words.ROUTING and check.routing is not None:
                bad = bad | check.routing.doubtful(record.tensors[words.SUMS], count)
            else:
                bad = bad | ~record.finite_C
        else:
            for values in record.values():
                bad = bad | ~np.isfinite(values)
    if training and doubts is not None:
        bad = bad | doubts(part, nodes)
    return bad


def part_kind(part: Part, loose: frozenset[str]) -> tuple[object, ...]:
    """What the replies of a part hold; strategies merge replies that hold the same.

    Args:
        part: the replies.
        loose: keys of records that are not looked at.
    """
    records = tuple(
        (key, str(record.signature) if key == words.LOAD else "arrays")
        if isinstance(record, Stack)
        else (key, "numbers")
        for key, record in part.records.items()
        if key not in loose
    )
    return records, tuple(part.means), tuple(part.numbers(words.METRICS))
