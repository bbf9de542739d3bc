"""The reply guard: what every reply must satisfy before a strategy sees it.

Stock strategies average whatever comes and end the run at the first malformed reply; a strategy
behind the guard only sees replies that fit, and a bad one is that client's recorded failure.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from fedmoe.errors import ReplyError
from fedmoe.messages import words
from fedmoe.messages.arrays import content_bytes, npy_headers, stack_of
from fedmoe.schema import RuntimeConfig

Signature = dict[str, tuple[tuple[int, ...], str]]

_REASON_LENGTH = 300


@dataclass
class Inspection:
    """A phase's replies after the guard.

    Attributes:
        good: replies that the strategy may see, by node id.
        failures: reason by node id, for everyone else who was asked.
        bytes_up: bytes of each good reply, by node id.
    """

    good: list[Message] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    bytes_up: dict[int, int] = field(default_factory=dict)

    def drop_failures(self) -> None:
        """Forget the replies of nodes that turned out to be failures."""
        self.good = [r for r in self.good if r.metadata.src_node_id not in self.failures]
        self.bytes_up = {n: size for n, size in self.bytes_up.items() if n not in self.failures}


class ReplyGuard:
    """Checks keys, shapes, dtypes, finiteness, counts and bytes of replies.

    A strategy may add a check of its own: a method `check_reply(message)` that raises
    `ValueError`.
    """

    def __init__(self, config: RuntimeConfig, strategy: Strategy) -> None:
        self.config = config
        self._own_check = getattr(strategy, "check_reply", None)

    def inspect(self, sent: Sequence[Message], replies: Iterable[Message]) -> Inspection:
        """Sort the replies to `sent` into good ones and failures; order does not matter."""
        result = Inspection()
        asked = {message.metadata.dst_node_id: message for message in sent}
        seen: set[int] = set()
        expected = _Expected()
        for reply in sorted(replies, key=lambda one: one.metadata.src_node_id):
            node = reply.metadata.src_node_id
            if node not in asked:
                continue  # nobody to blame: the network delivered what nobody asked for
            try:
                if node in seen:
                    raise ReplyError("more than one reply")
                seen.add(node)
                size = self._check(reply, asked[node], expected)
            except Exception as error:  # hostile input may raise anything
                result.failures[node] = _one_line(error)
                continue
            result.good.append(reply)
            result.bytes_up[node] = size
        for node in asked.keys() - seen:
            result.failures[node] = "no reply before the deadline"
        result.drop_failures()
        _refuse_odd_contents(result)
        result.drop_failures()
        return result

    def _check(self, reply: Message, request: Message, expected: "_Expected") -> int:
        """Raise ReplyError, or return the reply's bytes."""
        if reply.has_error():
            raise ReplyError(reply.error.reason or f"error code {reply.error.code}")
        content = reply.content
        size = content_bytes(content)
        if size > self.config.max_reply_bytes:
            raise ReplyError(f"{size} bytes, at most {self.config.max_reply_bytes} are allowed")
        training = request.metadata.message_type == MessageType.TRAIN
        self._check_counts(content.get(words.METRICS), least=1 if training else 0)
        sent = request.content.get(words.ARRAYS) if training else None
        asked = isinstance(sent, ArrayRecord)
        if asked and not isinstance(content.get(words.ARRAYS), ArrayRecord):
            raise ReplyError("the reply has no arrays")
        for key, record in content.items():
            if isinstance(record, MetricRecord):
                _check_finite(record)
            elif isinstance(record, ArrayRecord):
                if key == words.ARRAYS and not asked:
                    raise ReplyError("weights were not asked for")
                check_arrays(key, record, expected.signature(sent, key))
        if training and self._own_check is not None:
            self._own_check(reply)
        return size

    def _check_counts(self, metrics: object, least: int) -> None:
        """Each metric is one number, and those that weigh others are plausible."""
        if not isinstance(metrics, MetricRecord):
            raise ReplyError("the reply has no metrics")
        self._check_count(words.NUM_EXAMPLES, metrics.get(words.NUM_EXAMPLES), least)
        for name, value in metrics.items():
            if isinstance(value, list):
                raise ReplyError(f"metric {name}: must be one number, got a list")
            if name.endswith(words.NUM_EXAMPLES):  # scores are weighted by these
                self._check_count(name, value, 0)

    def _check_count(self, name: str, value: object, least: int) -> None:
        most = self.config.max_examples
        if type(value) is not int or not least <= value <= most:  # True would pass isinstance
            raise ReplyError(f"{name}={value}: must be a whole number {least}..{most}")


def _check_finite(record: MetricRecord) -> None:
    for name, value in record.items():
        values = value if isinstance(value, list) else (value,)
        if not all(map(math.isfinite, values)):
            raise ReplyError(f"metric {name}={value}: must be finite")


def _refuse_odd_contents(result: Inspection) -> None:
    """All replies must hold the same records and metrics.

    Strategies average metrics by name, and Flower's own refuse the whole round if one reply has
    a record more than the others.
    """
    kinds = {
        (tuple(r.content), tuple(map(type, r.content.values())), tuple(r.content[words.METRICS]))
        for r in result.good
    }
    if len(kinds) <= 1:
        return
    labels = [_labels(reply.content) for reply in result.good]
    usual = Counter(labels).most_common(1)[0][0]
    for reply, own in zip(result.good, labels, strict=True):
        if own != usual:
            odd = ReplyError(f"differs from the other replies in {', '.join(sorted(own ^ usual))}")
            result.failures[reply.metadata.src_node_id] = _one_line(odd)


def _labels(content: RecordDict) -> frozenset[str]:
    """What a reply holds: its records, and the names of its metrics."""
    records = {f"{key} ({_record_kind(record)})" for key, record in content.items()}
    return frozenset(records.union(content[words.METRICS]))


def _record_kind(record: object) -> str:
    if isinstance(record, ArrayRecord):
        return "arrays"
    return "metrics" if isinstance(record, MetricRecord) else "config"


class _Expected:
    """Shapes and dtypes of the arrays that were sent, read once per record."""

    def __init__(self) -> None:
        self._known: dict[int, Signature] = {}

    def signature(self, sent: object, key: str) -> Signature | None:
        if key != words.ARRAYS or not isinstance(sent, ArrayRecord):
            return None
        if id(sent) not in self._known:
            self._known[id(sent)] = {name: (a.shape, a.dtype) for name, a in sent.items()}
        return self._known[id(sent)]


def check_arrays(key: str, record: ArrayRecord, expected: Signature | None) -> None:
    """Check one record of a reply.

    Args:
        key: the record's name, for the message.
        record: what came.
        expected: names, shapes and dtypes it must have; `None` checks finiteness alone.

    Raises:
        ReplyError: says what is wrong.
    """
    stacked = stack_of(record)
    if stacked is not None:
        stack, row = stacked
        if expected is not None and stack.signature != expected:
            raise ReplyError(f"{key}: {_difference(stack.signature, expected)}")
        if not stack.finite_C[row]:
            raise ReplyError(f"{key}: not finite")
        return
    received = {name: (tuple(array.shape), array.dtype) for name, array in record.items()}
    if expected is not None and received != expected:
        raise ReplyError(f"{key}: {_difference(received, expected)}")
    for name, array in record.items():
        _check_array(f"{key}/{name}", array)


def _check_array(name: str, array: Array) -> None:
    """What the bytes say must be what the record says; declared sizes are not believed."""
    if np.dtype(array.dtype).kind not in "fiu":
        raise ReplyError(f"{name}: dtype {array.dtype} is not a number")
    size = math.prod(array.shape) * np.dtype(array.dtype).itemsize
    headers = npy_headers(tuple(array.shape), array.dtype)
    expected = len(headers[0]) + size
    if len(array.data) != expected:
        raise ReplyError(f"{name}: {len(array.data)} bytes of data, expected {expected}")
    # Before NumPy sees it: what it is told to make room for is what the header says.
    if not array.data.startswith(headers):
        raise ReplyError(f"{name}: its data do not start as {array.dtype}{list(array.shape)} do")
    values = array.numpy()
    if not np.isfinite(values).all():
        raise ReplyError(f"{name}: not finite")


def _difference(received: Signature, expected: Signature) -> str:
    """The first difference, in words."""
    if missing := sorted(expected.keys() - received.keys()):
        return f"lacks {', '.join(missing)}"
    if extra := sorted(received.keys() - expected.keys()):
        return f"has unknown {', '.join(extra)}"
    name = next(name for name in expected if received[name] != expected[name])
    return f"{name} is {_kind(received[name])}, expected {_kind(expected[name])}"


def _kind(signature: tuple[tuple[int, ...], str]) -> str:
    shape, dtype = signature
    return f"{dtype}{list(shape)}"


def _one_line(error: Exception) -> str:
    """A reason fit for a log line, whatever a client wrote into it."""
    text = str(error) if isinstance(error, ReplyError | ValueError) else repr(error)
    safe = "".join(c if c.isprintable() else " " for c in text[: 10 * _REASON_LENGTH])
    return " ".join(safe.split())[:_REASON_LENGTH] or type(error).__name__
