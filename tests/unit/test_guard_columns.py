"""The guard on columns: the same verdicts as on the same replies one by one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from flwr.app import (
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAvg, Strategy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmoe.config import load_config
from fedmoe.guard import Inspection, ReplyGuard
from fedmoe.messages import words
from fedmoe.messages.arrays import Records, Stack, to_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import RecordType, ensure_task_identity, unchecked_metrics
from fedmoe.phase import Phase, message_sizes
from fedmoe.schema import RuntimeBase

LIMITS = replace(load_config().runtime, max_reply_bytes=10_000, max_examples=1000)
HUGE = np.float32(3e38)  # two of them overflow a sum
TRAIN, EVALUATE = MessageType.TRAIN, MessageType.EVALUATE


class Record(NamedTuple):
    """One record of one client: arrays, or numbers (0-dimensional)."""

    is_arrays: bool
    values: dict[str, NDArray[Any]]

    @property
    def kind(self) -> tuple[object, ...]:
        """Records of one kind can be stacked."""
        own = ((name, str(value.dtype), value.shape) for name, value in self.values.items())
        return self.is_arrays, tuple(own)

    def alone(self) -> RecordType:
        if self.is_arrays:
            return to_record(self.values)
        return unchecked_metrics({name: value.item() for name, value in self.values.items()})


Held = dict[str, Record]  # one client's reply
Spoil = Callable[[Held], object]


class Case(NamedTuple):
    """What is asked of clients 2, 3, ... and what each answers; `None` is an error."""

    kind: str
    asked: bool  # whether arrays were sent
    held: list[Held | None]
    loose: frozenset[int] = frozenset()  # replies that came as messages
    split: frozenset[int] = frozenset()  # replies that are no part of the others' parts
    as_list: bool = False

    def sent(self) -> Sequence[Message]:
        records: dict[str, RecordType] = {words.CONFIG: MetricRecord({"x": 1})}
        if self.asked:
            records = {words.ARRAYS: to_record(weights(0)), **records}
        sent = Broadcast(range(2, 2 + len(self.held)), self.kind, records)
        return list(sent) if self.as_list else sent

    def replies(self, sent: Sequence[Message]) -> Replies:
        parts: dict[tuple[object, ...], list[int]] = {}
        plain: dict[int, Message] = {}
        for row, held in enumerate(self.held):
            if held is None:
                plain[row] = Message(Error(2, f"client {row}\nfailed"), reply_to=sent[row])
            elif row in self.loose:
                content = RecordDict({key: record.alone() for key, record in held.items()})
                plain[row] = Message(content, reply_to=sent[row])
            else:
                kind = tuple((key, record.kind) for key, record in held.items())
                parts.setdefault((row in self.split, kind), []).append(row)
        return Replies(sent, [self._part(rows) for rows in parts.values()], plain)

    def _part(self, rows: list[int]) -> Part:
        own = [cast(Held, self.held[row]) for row in rows]
        records: Records = {}
        for key, first in own[0].items():
            table = {n: np.stack([one[key].values[n] for one in own]) for n in first.values}
            records[key] = (
                Stack({n: torch.from_numpy(t) for n, t in table.items()})
                if first.is_arrays
                else table
            )
        return Part(np.array(rows), records)


def weights(value: float) -> dict[str, NDArray[Any]]:
    return {
        "weight": np.full((2, 3), value, dtype=np.float32),
        "bias": np.array([value, -value], dtype=np.float32),
        "steps": np.array([3, 4], dtype=np.int64),
    }


def numbers(**values: Any) -> Record:
    return Record(False, {name.replace("_", "-"): np.asarray(v) for name, v in values.items()})


def healthy(kind: str, asked: bool, value: float = 1.0) -> Held:
    if kind == EVALUATE:
        counts = {"num_examples": 5, "test_num_examples": 5, "validation_num_examples": 0}
        return {words.METRICS: numbers(**counts, loss=value)}
    held = {words.METRICS: numbers(num_examples=5, loss=value)}
    return {words.ARRAYS: Record(True, weights(value)), **held} if asked else held


@pytest.fixture(autouse=True)
def _identity() -> None:
    ensure_task_identity()


def inspect_both(
    case: Case, strategy: Strategy | None = None, limits: RuntimeBase = LIMITS
) -> Inspection:
    """The verdicts on the columns, which must be those on the messages."""
    guard = ReplyGuard(limits, strategy or FedAvg())
    sent = case.sent()
    sizes = message_sizes(sent)
    columns = guard.inspect(sent, case.replies(sent))
    single = guard.inspect(sent, list(case.replies(sent)))
    assert columns.failures == single.failures
    assert columns.bytes_up == single.bytes_up
    assert nodes_of(columns.good) == nodes_of(single.good)
    for mine, theirs in zip(columns.good, single.good, strict=True):
        assert mine.content == theirs.content
    phases = [Phase(one, sizes) for one in (columns, single)]
    assert phases[0].traffic() == phases[1].traffic()
    told = [phase.client_columns(7, lambda node: node - 2) for phase in phases]
    assert list(told[0]) == list(told[1])
    for name in told[0]:
        assert told[0][name] == told[1][name], name
    return columns


def nodes_of(messages: Sequence[Message]) -> list[int]:
    return [message.metadata.src_node_id for message in messages]


# --------------------------------------------------------------------------------- what can be bad


def weight(name: str, value: float, key: str = words.ARRAYS) -> Spoil:
    def spoil(held: Held) -> None:
        held[key].values[name].flat[-1] = value

    return spoil


def array(name: str, value: NDArray[Any]) -> Spoil:
    return lambda held: held[words.ARRAYS].values.update({name: value})


def number(name: str, value: Any, key: str = words.METRICS) -> Spoil:
    return lambda held: held[key].values.update({name: np.asarray(value)})


def without(key: str, name: str | None = None) -> Spoil:
    return lambda held: held.pop(key) if name is None else held[key].values.pop(name)


def with_record(key: str, record: Record) -> Spoil:
    return lambda held: held.update({key: record})


def overflow(held: Held) -> None:
    for value in held[words.ARRAYS].values.values():
        if value.dtype.kind == "f":
            value[:] = HUGE


def overflow_and_cancel(held: Held) -> None:
    held[words.ARRAYS].values["weight"][:] = [[HUGE, HUGE, -HUGE], [-HUGE, -HUGE, -HUGE]]


def overflow_with_nan(held: Held) -> None:
    overflow(held)
    held[words.ARRAYS].values["bias"][0] = math.nan


METRICS_AS_ARRAYS = Record(True, {"num-examples": np.array([5]), "loss": np.array([1.0])})
MUST_BE = "must be a whole number 1..1000"
ARRAYS_OF = [
    ("nan", weight("weight", math.nan), "not finite"),
    ("inf", weight("bias", math.inf), "not finite"),
    ("minus-inf", weight("bias", -math.inf), "not finite"),
    ("nan-that-overflows", overflow_with_nan, "not finite"),
    ("huge", overflow, None),
    ("huge-that-cancels", overflow_and_cancel, None),
    ("none", without(words.ARRAYS), "the reply has no arrays"),
    ("as-numbers", with_record(words.ARRAYS, numbers(weight=1.0)), "the reply has no arrays"),
    ("shape", array("weight", np.ones((3, 2), np.float32)), "arrays: weight is float32[3, 2], "
     "expected float32[2, 3]"),
    ("scalar", array("bias", np.ones((), np.float32)), "arrays: bias is float32[], expected "
     "float32[2]"),
    ("float64", array("bias", np.ones(2)), "arrays: bias is float64[2], expected float32[2]"),
    ("int32", array("steps", np.ones(2, np.int32)), "arrays: steps is int32[2], expected int64[2]"),
    ("missing", without(words.ARRAYS, "bias"), "arrays: lacks bias"),
    ("unknown", array("extra", np.ones(1, np.float32)), "arrays: has unknown extra"),
    ("oversized", array("weight", np.ones((60, 60), np.float32)), "bytes, at most 10000 are "
     "allowed"),
]  # fmt: skip
UNASKED = [
    ("unasked", with_record(words.ARRAYS, Record(True, weights(1))), "weights were not asked for"),
    ("unasked-numbers", with_record(words.ARRAYS, numbers(x=1.0)), "differs from the other "
     "replies in arrays (metrics)"),
]  # fmt: skip
NUMBERS = [
    ("no-metrics", without(words.METRICS), "the reply has no metrics"),
    ("metrics-as-arrays", with_record(words.METRICS, METRICS_AS_ARRAYS), "has no metrics"),
    ("no-count", without(words.METRICS, "num-examples"), "num-examples=None: must be a whole"),
    ("negative", number("num-examples", -3), "num-examples=-3: must be a whole number"),
    ("too-large", number("num-examples", 1001), "num-examples=1001: must be a whole number"),
    ("1e12", number("num-examples", 10**12), f"num-examples={10**12}: must be a whole number"),
    ("float", number("num-examples", 4.0), "num-examples=4.0: must be a whole number"),
    ("nan-count", number("num-examples", math.nan), "num-examples=nan: must be a whole number"),
    ("bool", number("num-examples", True), "num-examples=True: must be a whole number"),
    ("most", number("num-examples", 1000), None),
    ("unsigned", number("num-examples", np.uint8(3)), None),
    ("int32-count", number("num-examples", np.int32(3)), None),
    ("nan-loss", number("loss", math.nan), "metric loss=nan: must be finite"),
    ("inf-loss", number("loss", -math.inf), "metric loss=-inf: must be finite"),
    ("float32-loss", number("loss", np.float32("nan")), "metric loss=nan: must be finite"),
    ("whole-loss", number("loss", 3), None),
    ("no-loss", without(words.METRICS, "loss"), "differs from the other replies in loss"),
    ("extra", number("extra", 1.0), "differs from the other replies in extra"),
    ("another-count", number("more-num-examples", 3), "differs from the other replies in more-num"),
    ("another-bad-count", number("more-num-examples", -3), "more-num-examples=-3: must be a whole "
     "number 0..1000"),
    ("surplus-numbers", with_record("more", numbers(x=1.0)), "differs from the other replies in "
     "more (metrics)"),
    ("surplus-arrays", with_record("more", Record(True, {"x": np.ones(2)})), "differs from the "
     "other replies in more (arrays)"),
    ("surplus-nan", with_record("more", numbers(x=math.nan)), "metric x=nan: must be finite"),
    ("surplus-inf", with_record("more", Record(True, {"x": np.array([1, math.inf])})),
     "not finite"),
    ("huge-words", with_record("more", numbers(**{"x" * 10_000: 1.0})), "bytes, at most 10000"),
]  # fmt: skip
TRAINING = [("zero", number("num-examples", 0), f"num-examples=0: {MUST_BE}")]
EVALUATION = [
    ("zero", number("num-examples", 0), None),
    ("bad-test-count", number("test-num-examples", -1), "test-num-examples=-1: must be a whole"),
    ("fraction", number("test-num-examples", 2.5), "test-num-examples=2.5: must be a whole"),
    ("validation", number("validation-num-examples", 1001), "validation-num-examples=1001: must"),
    ("no-such-count", without(words.METRICS, "test-num-examples"), "differs from the other "
     "replies in test-num-examples"),
]  # fmt: skip
ASKS = [
    (TRAIN, True, [*ARRAYS_OF, *NUMBERS, *TRAINING]),
    (TRAIN, False, [*UNASKED, *NUMBERS, *TRAINING]),
    (EVALUATE, True, [*UNASKED, *NUMBERS, *EVALUATION]),
    (EVALUATE, False, [*UNASKED, *NUMBERS, *EVALUATION]),
]
SPOILS: list[Any] = [
    pytest.param(kind, asked, spoil, reason, id=f"{kind}-{'asked' if asked else 'bare'}-{name}")
    for kind, asked, spoils in ASKS
    for name, spoil, reason in spoils
]


@pytest.mark.parametrize(("kind", "asked", "spoil", "reason"), SPOILS)
def test_one_bad_reply_among_columns(
    kind: str, asked: bool, spoil: Spoil, reason: str | None
) -> None:
    for loose in (frozenset[int](), frozenset({2}), frozenset({0, 2})):
        held = [healthy(kind, asked, value) for value in range(1, 5)]
        spoil(held[2])
        result = inspect_both(Case(kind, asked, [*held], loose))
        assert list(result.failures) == ([] if reason is None else [4])
        assert (reason or "") in result.failures.get(4, "")


def test_records_of_one_name_and_two_kinds_are_odd() -> None:
    held = [healthy(TRAIN, True, value) for value in range(1, 6)]
    for place, one in enumerate(held):
        record = numbers(x=1.0) if place in (1, 4) else Record(True, {"x": np.ones(1)})
        with_record("more", record)(one)
    odd = "differs from the other replies in more (arrays), more (metrics)"
    assert inspect_both(Case(TRAIN, True, [*held])).failures == {3: odd, 6: odd}


@pytest.mark.parametrize(("kind", "asked", "spoil", "reason"), SPOILS)
def test_all_replies_bad_in_one_way(
    kind: str, asked: bool, spoil: Spoil, reason: str | None
) -> None:
    held = [healthy(kind, asked, value) for value in range(1, 4)]
    for one in held:
        spoil(one)
    result = inspect_both(Case(kind, asked, [*held]))
    fine = reason is None or reason.startswith("differs")
    assert len(result.failures) == (0 if fine else 3)


@settings(max_examples=300)
@given(st.data())
def test_any_mixture_of_replies_gets_the_same_verdicts(data: st.DataObject) -> None:
    ensure_task_identity()
    kind, asked, spoils = data.draw(st.sampled_from(ASKS))
    count = data.draw(st.integers(1, 8))
    held: list[Held | None] = []
    for place in range(count):
        fate = data.draw(st.sampled_from(["good"] * 3 + ["bad"] * 3 + ["insight", "error"]))
        one = healthy(kind, asked, value=place + 1)
        if fate == "bad":
            data.draw(st.sampled_from(spoils))[1](one)
        if fate == "insight":
            one[words.INSIGHT] = numbers(client=place)
        held.append(None if fate == "error" else one)
    some = st.frozensets(st.integers(0, count - 1))
    case = Case(kind, asked, held, data.draw(some), data.draw(some), data.draw(st.booleans()))
    inspect_both(case)


# ----------------------------------------------------------------------------- what columns are for


def test_good_columns_stay_columns_without_the_bad_ones() -> None:
    held = [healthy(TRAIN, True, value) for value in range(1, 6)]
    weight("weight", math.nan)(held[3])
    result = inspect_both(Case(TRAIN, True, [*held, None]))
    assert isinstance(result.good, Replies)
    assert result.good.nodes == [2, 3, 4, 6]
    assert result.good.arrays()["weight"][:, 0, 0].tolist() == [1, 2, 3, 5]
    assert result.good.numbers()["loss"].tolist() == [1, 2, 3, 5]


def test_odd_columns_leave_columns_behind() -> None:
    held = [healthy(TRAIN, True, value) for value in range(1, 6)]
    without(words.METRICS, "loss")(held[1])
    result = inspect_both(Case(TRAIN, True, [*held]))
    assert list(result.failures) == [3]
    assert isinstance(result.good, Replies) and len(result.good.parts) == 1
    assert result.good.arrays()["weight"][:, 0, 0].tolist() == [1, 3, 4, 5]


def count_messages(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    made: list[Message] = []
    ordinary = Message.__init__

    def count(self: Message, *args: Any, **keywords: Any) -> None:
        made.append(self)
        ordinary(self, *args, **keywords)

    monkeypatch.setattr(Message, "__init__", count)
    return made


@pytest.mark.parametrize(("kind", "asked"), [(TRAIN, True), (TRAIN, False), (EVALUATE, True)])
@pytest.mark.parametrize("bad", [0, 1, 3])
def test_messages_are_made_of_doubtful_replies_alone(
    kind: str, asked: bool, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [healthy(kind, asked, value) for value in range(50)]
    for place in range(bad):
        number("loss", math.nan)(held[7 * place + 1])
    case = Case(kind, asked, [*held])
    sent = case.sent()
    replies = case.replies(sent)
    made = count_messages(monkeypatch)
    result = ReplyGuard(LIMITS, FedAvg()).inspect(sent, replies)
    assert len(result.failures) == bad
    assert len(made) == 1 + 2 * bad  # one request tells what was asked; bad ones and theirs


def test_replies_weigh_what_their_messages_do() -> None:
    held = [healthy(TRAIN, True), healthy(TRAIN, True)]
    with_record("more", numbers(long_name=1.0))(held[1])
    case = Case(TRAIN, True, [held[0]])
    size = inspect_both(case).bytes_up[2]
    at_limit = replace(LIMITS, max_reply_bytes=size)
    assert not inspect_both(case, limits=at_limit).failures
    below = replace(LIMITS, max_reply_bytes=size - 1)
    assert inspect_both(case, limits=below).failures == {
        2: f"{size} bytes, at most {size - 1} are allowed"
    }
    assert inspect_both(Case(TRAIN, True, [held[1]])).bytes_up[2] == size + len("long-name") + 8


# ------------------------------------------------------------------------- what only columns can be


def merged_part(rows: Sequence[int], held: Sequence[Held]) -> Part:
    """The mean of equally many examples each."""
    part = Case(TRAIN, True, [held[row] for row in rows])._part(list(range(len(rows))))
    stack = part.records.pop(words.ARRAYS)
    assert isinstance(stack, Stack)
    means = {name: tensor.double().mean(dim=0).to(tensor) for name, tensor in stack.tensors.items()}
    return Part(np.array(rows), part.records, {words.ARRAYS: means})


def test_replies_whose_arrays_are_merged_pass_and_weigh_as_much() -> None:
    held = [healthy(TRAIN, True, value) for value in range(1, 5)]
    case = Case(TRAIN, True, [*held, None])
    sent = case.sent()
    error = case.replies(sent).plain
    replies = Replies(sent, [merged_part([0, 1], held), merged_part([2, 3], held)], error)
    result = ReplyGuard(LIMITS, FedAvg()).inspect(sent, replies)
    expected = inspect_both(case)
    assert result.failures == expected.failures == {6: "client 4 failed"}
    assert result.bytes_up == expected.bytes_up
    assert isinstance(result.good, Replies)
    mean = result.good.mean(np.full(4, 0.25))["weight"]
    np.testing.assert_allclose(mean.numpy(), np.full((2, 3), 2.5))


def test_a_shard_that_differs_from_the_others_is_left_out_as_a_whole() -> None:
    held = [healthy(TRAIN, True, value) for value in range(1, 6)]
    for place in (2, 3):
        number("extra", 1.0)(held[place])
    sent = Case(TRAIN, True, [*held]).sent()
    parts = [merged_part([0, 1, 4], held), merged_part([2, 3], held)]
    result = ReplyGuard(LIMITS, FedAvg()).inspect(sent, Replies(sent, parts, {}))
    odd = "differs from the other replies in extra"
    assert result.failures == {4: odd, 5: odd}
    assert isinstance(result.good, Replies)
    mean = result.good.mean(np.full(3, 1 / 3))["weight"]
    np.testing.assert_allclose(mean.numpy(), np.full((2, 3), (1 + 2 + 5) / 3), rtol=1e-6)


# ------------------------------------------------------------------------ a check of the strategy's


class Picky(FedAvg):
    """Looks at every reply, and refuses some nodes'."""

    def __init__(self, *refused: int) -> None:
        super().__init__()
        self.refused = refused
        self.seen: list[int] = []

    def check_reply(self, reply: Message) -> None:
        self.seen.append(reply.metadata.src_node_id)
        if reply.metadata.src_node_id in self.refused:
            raise ValueError("stale")


def test_the_strategys_own_check_sees_every_good_reply_of_training() -> None:
    held: list[Held | None] = [healthy(TRAIN, True, value) for value in range(1, 6)]
    weight("weight", math.nan)(cast(Held, held[1]))
    held[3] = None
    strategy = Picky(4)
    result = inspect_both(Case(TRAIN, True, held), strategy)
    assert strategy.seen == [2, 4, 6] * 2
    assert result.failures == {3: "arrays: not finite", 4: "stale", 5: "client 3 failed"}


def test_the_strategys_own_check_costs_an_evaluation_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(EVALUATE, True, [healthy(EVALUATE, True) for _ in range(20)])
    strategy = Picky(4)
    assert not inspect_both(case, strategy).failures
    assert strategy.seen == []
    sent = case.sent()
    replies = case.replies(sent)
    made = count_messages(monkeypatch)
    ReplyGuard(LIMITS, strategy).inspect(sent, replies)
    assert len(made) == 1


# ------------------------------------------------------------------------------------------- nodes


def test_two_messages_to_one_node() -> None:
    """Two replies of one node are nobody's: as messages, and as columns."""
    records: dict[str, RecordType] = {words.ARRAYS: to_record(weights(0))}
    sent = [message for node in (2, 3, 3, 4) for message in Broadcast([node], TRAIN, records)]
    held = [healthy(TRAIN, True, value) for value in range(4)]
    replies = Replies(sent, [Case(TRAIN, True, [*held])._part([0, 1, 2, 3])], {})
    guard = ReplyGuard(LIMITS, FedAvg())
    for came in (replies, list(replies)):
        result = guard.inspect(sent, came)
        assert result.failures == {3: "more than one reply"}
        assert nodes_of(result.good) == list(result.bytes_up) == [2, 4]


def test_nodes_in_any_order() -> None:
    """Columns keep the order of the requests; whom they fail does not depend on it."""
    held = [healthy(TRAIN, True, value) for value in range(1, 5)]
    number("num-examples", 0)(held[1])
    sent = Broadcast([9, 4, 7, 2], TRAIN, {words.ARRAYS: to_record(weights(0))})
    replies = Replies(sent, [Case(TRAIN, True, [*held])._part([0, 1, 2, 3])], {})
    guard = ReplyGuard(LIMITS, FedAvg())
    columns, single = guard.inspect(sent, replies), guard.inspect(sent, list(replies))
    assert columns.failures == single.failures == {4: f"num-examples=0: {MUST_BE}"}
    assert columns.bytes_up == single.bytes_up
    assert nodes_of(columns.good) == [9, 7, 2]
    sizes = message_sizes(sent)
    told = [Phase(one, sizes).client_columns(1, lambda node: node) for one in (columns, single)]
    assert told[0] == told[1]
    assert told[0]["client"] == [2, 4, 7, 9]
    assert told[0]["loss"] == [4.0, None, 3.0, 1.0]
