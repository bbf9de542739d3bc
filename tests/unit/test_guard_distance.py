"""Updates that are too long, by plain loops over clients and numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedmoe.config import load_config
from fedmoe.guard import Inspection, ReplyGuard
from fedmoe.guard.distance import lengths, too_far, update_lengths
from fedmoe.messages import words
from fedmoe.messages.arrays import Records, Stack, to_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import RecordType, ensure_task_identity
from fedmoe.schema import RuntimeBase

RUNTIME = replace(load_config().runtime, max_update_ratio=10.0, max_update_norm=None)
Arrays = dict[str, NDArray[Any]]
SENT: Arrays = {
    "w": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),
    "b": np.array(5.0, np.float32),
    "steps": np.array([7], np.int64),
}


@pytest.fixture(autouse=True)
def _identity() -> None:
    ensure_task_identity()


def length(came: Mapping[str, NDArray[Any]], sent: Mapping[str, NDArray[Any]]) -> float:
    """The oracle: number by number; whole numbers have no length."""
    total = 0.0
    for name, array in came.items():
        if array.dtype.kind == "f":
            for one, other in zip(array.flat, sent[name].flat, strict=True):
                total += (float(one) - float(other)) ** 2
    return math.sqrt(total)


def moved(by: float, sent: Arrays = SENT) -> Arrays:
    """An update that is `by` long, along a direction of its own."""
    generator = np.random.default_rng(int(by * 1000) % 2**31)
    floats = [name for name in sent if sent[name].dtype.kind == "f"]
    step = {name: generator.normal(size=sent[name].shape) for name in floats}
    norm = math.sqrt(sum(float((s**2).sum()) for s in step.values()))
    return {
        name: (a + by / norm * step[name]).astype(a.dtype) if name in step else a + 1
        for name, a in sent.items()
    }


def content(arrays: Arrays) -> RecordDict:
    metrics = MetricRecord({words.NUM_EXAMPLES: 5, words.LOSS: 0.5})
    return RecordDict({words.ARRAYS: to_record(arrays), words.METRICS: metrics})


def as_columns(
    sent: Sequence[Arrays], held: Sequence[Arrays], plain: Sequence[int] = ()
) -> tuple[Sequence[Message], Replies]:
    """Replies, some of them messages, to a broadcast; each client may be sent arrays of its own."""
    records: list[Mapping[str, RecordType]] = []
    known: dict[int, ArrayRecord] = {}
    for own in sent:
        known.setdefault(id(own), to_record(own))
        records.append({words.ARRAYS: known[id(own)]})
    same = len(known) == 1
    messages = Broadcast(
        range(2, 2 + len(held)),
        MessageType.TRAIN,
        records[0] if same else {},
        personal=None if same else records,
    )
    rows = [row for row in range(len(held)) if row not in plain]
    stack = Stack({n: torch.from_numpy(np.stack([held[r][n] for r in rows])) for n in held[0]})
    count = np.full(len(rows), 5)
    part: Records = {
        words.ARRAYS: stack,
        words.METRICS: {words.NUM_EXAMPLES: count, words.LOSS: count / 10},
    }
    others = {row: Message(content(held[row]), reply_to=messages[row]) for row in plain}
    return messages, Replies(messages, [Part(np.array(rows), part)], others)


def as_messages(
    sent: Sequence[Arrays], held: Sequence[Arrays]
) -> tuple[Sequence[Message], list[Message]]:
    records = [to_record(own) for own in sent]
    messages = [
        Message(RecordDict({words.ARRAYS: record}), 2 + row, MessageType.TRAIN)
        for row, record in enumerate(records)
    ]
    return messages, [Message(content(h), reply_to=m) for m, h in zip(messages, held, strict=True)]


def inspect(
    sent: Sequence[Arrays], held: Sequence[Arrays], config: RuntimeBase = RUNTIME
) -> Inspection:
    """The guard's verdict, which must not depend on how the replies came."""
    results = [
        ReplyGuard(config).inspect(*pair)
        for pair in (
            as_columns(sent, held),
            as_columns(sent, held, plain=[1, 3]),
            as_messages(sent, held),
        )
    ]
    for other in results[1:]:
        assert other.failures == results[0].failures
        assert other.refused == results[0].refused == set(other.failures)
        assert other.bytes_up.keys() == results[0].bytes_up.keys()
        nodes = [reply.metadata.src_node_id for reply in other.good]
        assert (
            nodes
            == [reply.metadata.src_node_id for reply in results[0].good]
            == list(results[0].bytes_up)
        )
    return results[0]


def test_lengths_are_those_of_a_loop() -> None:
    held = [moved(by) for by in (0.0, 0.5, 3.0, 70.0)]
    other = {name: array * 2 for name, array in SENT.items()}
    for sent in ([SENT] * 4, [SENT, other, SENT, other]):
        expected = [length(came, own) for came, own in zip(held, sent, strict=True)]
        assert expected[1] > 0.4
        for plain in ([], [0, 2]):
            found = update_lengths(as_columns(sent, held, plain)[1])
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_one_of_the_experts_is_compared_with_the_one_that_was_sent() -> None:
    generator = np.random.default_rng(0)
    sent = {"w": generator.normal(size=(3, 4)).astype(np.float32)}
    came = {"w": generator.normal(size=(2, 1, 4)).astype(np.float32)}
    index = np.array([[2], [0]])
    expected = [
        length({"w": came["w"][0, 0]}, {"w": sent["w"][2]}),
        length({"w": came["w"][1, 0]}, {"w": sent["w"][0]}),
    ]
    tensors = {"w": torch.from_numpy(came["w"])}
    before = {"w": torch.from_numpy(sent["w"])}
    found = lengths(tensors, before, torch.from_numpy(index))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for wrong in (None, torch.tensor([[3], [0]]), torch.tensor([[-1], [0]]), torch.tensor([2, 0])):
        assert np.isnan(lengths(tensors, before, wrong)).all()


def test_far_more_than_the_median_is_refused_and_named() -> None:
    held = [moved(by) for by in (1.0, 2.0, 3.0, 4.0, 29.0, 36.0)]
    median = (3.0 + 4.0) / 2
    assert 29.0 < 10 * median < 36.0
    result = inspect([SENT] * 6, held)
    assert result.failures == {
        7: "its update is 36 long, the round's median is 3.5; at most 10 times that is allowed"
    }


def test_each_is_measured_from_what_it_was_sent() -> None:
    """Else clients whose models are far from the others' would be refused for nothing."""
    far = {name: array + 1000 for name, array in SENT.items()}
    sent = [SENT, far, SENT, far, SENT, far]
    assert inspect(sent, [moved(1.0 + n, own) for n, own in enumerate(sent)]).failures == {}
    spoilt = [moved(1.0, own) for own in sent[:-1]] + [SENT]  # far away from what it was sent
    assert list(inspect(sent, spoilt).failures) == [7]


@pytest.mark.parametrize("count", [4, 5])
def test_few_updates_have_no_usual_length(count: int) -> None:
    held = [moved(1.0)] * (count - 1) + [moved(1000.0)]
    assert list(inspect([SENT] * count, held).failures) == ([] if count < 5 else [count + 1])


def test_who_has_not_moved_does_not_count() -> None:
    """Where most have no data, the others must not all be too long."""
    held = [SENT] * 7 + [moved(1.0 + n) for n in range(5)]
    assert inspect([SENT] * 12, held).failures == {}
    held[-1] = moved(40.0)
    assert list(inspect([SENT] * 12, held).failures) == [13]
    assert inspect([SENT] * 5, [SENT] * 4 + [moved(100.0)]).failures == {}


def test_a_norm_that_is_set_holds_for_any_number() -> None:
    config = replace(RUNTIME, max_update_norm=2.0, max_update_ratio=None)
    held = [moved(1.0), moved(2.5)]
    config_of_both = replace(config, max_update_ratio=10.0)
    result = ReplyGuard(config_of_both).inspect(*as_messages([SENT] * 2, held))
    assert result.failures == {3: "its update is 2.5 long, at most 2 is allowed"}
    assert list(inspect([SENT] * 6, [moved(1.0)] * 5 + [moved(2.5)], config).failures) == [7]
    assert inspect([SENT] * 6, [moved(1.0)] * 5 + [moved(1.9)], config).failures == {}


def test_no_limit() -> None:
    config = replace(RUNTIME, max_update_norm=None, max_update_ratio=None)
    held = [moved(1.0)] * 5 + [moved(1e6)]
    assert inspect([SENT] * 6, held, config).failures == {}


def test_what_overflows_is_too_long() -> None:
    huge = np.float32(3e38)
    sent = {"w": np.full(4, -huge)}
    held = [{"w": np.full(4, -huge)}] * 1 + [{"w": np.full(4, huge)}]
    columns = as_columns([sent] * 2, held)[1]
    assert too_far(columns, replace(RUNTIME, max_update_norm=1e300)).keys() == {3}


def test_a_majority_of_long_updates_decides_what_is_usual() -> None:
    """The rule's limit, stated: it needs an honest majority."""
    held = [moved(1.0)] * 2 + [moved(1000.0)] * 3
    assert inspect([SENT] * 5, held).failures == {}


def test_evaluations_have_no_length() -> None:
    sent = [Message(RecordDict(), 2 + row, MessageType.EVALUATE) for row in range(6)]
    own = MetricRecord({words.NUM_EXAMPLES: 3})
    held = [Message(RecordDict({words.METRICS: own}), reply_to=m) for m in sent]
    assert ReplyGuard(RUNTIME).inspect(sent, held).failures == {}
