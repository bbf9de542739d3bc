"""The reply guard: what every reply must satisfy before a strategy sees it.

Stock strategies average whatever comes and end the run at the first malformed reply; a strategy
behind the guard only sees replies that fit, and a bad one is that client's recorded failure.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedmoe.errors import ReplyError
from fedmoe.messages import words
from fedmoe.messages.array_checks import check_arrays
from fedmoe.messages.arrays import Signature, Stack, content_bytes, signature_of
from fedmoe.messages.replies import Part, Replies
from fedmoe.schema import RuntimeBase

_REASON_LENGTH = 300


@dataclass
class Inspection:
    """A phase's replies after the guard.

    Attributes:
        good: replies that the strategy may see; messages by node id, columns as they were asked.
        failures: reason by node id, for everyone else who was asked.
        bytes_up: bytes of each good reply, by node id.
    """

    good: Sequence[Message] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    bytes_up: dict[int, int] = field(default_factory=dict)

    def drop_failures(self) -> None:
        """Forget the replies of nodes that turned out to be failures."""
        if not self.failures.keys() & self.bytes_up.keys():
            return
        nodes = [reply.metadata.src_node_id for reply in self.good]
        keep = [place for place, node in enumerate(nodes) if node not in self.failures]
        if isinstance(self.good, Replies):
            self.good = self.good.select(np.array(keep, dtype=np.int64))
        else:
            self.good = [self.good[place] for place in keep]
        self.bytes_up = {n: size for n, size in self.bytes_up.items() if n not in self.failures}


class ReplyGuard:
    """Checks keys, shapes, dtypes, finiteness, counts and bytes of replies.

    A strategy may add a check of its own: a method `check_reply(message)` that raises
    `ValueError`. Where replies are stacked, a method `doubtful_replies(part, nodes)` spares the
    messages: it returns which of them, (P,), `check_reply` is to look at; the others are good.
    """

    def __init__(self, config: RuntimeBase, strategy: Strategy | None = None) -> None:
        self.config = config
        self._own_check = getattr(strategy, "check_reply", None)
        self._doubts = getattr(strategy, "doubtful_replies", None)

    def inspect(self, sent: Sequence[Message], replies: Iterable[Message]) -> Inspection:
        """Sort the replies to `sent` into good ones and failures; order does not matter."""
        if (
            isinstance(replies, Replies)
            and replies.requests is sent
            and len(set(replies.nodes)) == len(replies)
        ):
            return self._inspect_columns(replies)
        result, good = Inspection(), list[Message]()
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
            good.append(reply)
            result.bytes_up[node] = size
        result.good = good
        for node in asked.keys() - seen:
            result.failures[node] = "no reply before the deadline"
        result.drop_failures()
        _refuse_odd_contents(result)
        result.drop_failures()
        return result

    def _inspect_columns(self, replies: Replies) -> Inspection:
        """The same verdicts; a message is made only of a reply that may be bad."""
        expected, nodes, result = _Expected(), replies.nodes, Inspection()
        sizes = np.zeros(len(replies), dtype=np.int64)
        doubtful = np.full(len(replies), False)
        doubtful[list(replies.plain)] = True
        for part in replies.parts:
            sizes[part.rows] = part.bytes_per_reply
            request = replies.requests[int(part.rows[0])]
            own = [nodes[row] for row in part.rows.tolist()]
            doubtful[part.rows] |= self._doubtful(part, own, request, expected)
        good = np.full(len(replies), True)
        for row in np.flatnonzero(doubtful).tolist():
            try:
                sizes[row] = self._check(replies[row], replies.requests[row], expected)
            except Exception as error:
                result.failures[nodes[row]] = _one_line(error)
                good[row] = False
        result.good = replies.select(np.flatnonzero(good))
        result.bytes_up = {
            node: size
            for node, size, passed in zip(nodes, sizes.tolist(), good.tolist(), strict=True)
            if passed
        }
        loose = good[list(replies.plain)].any()
        if loose or len({_part_kind(part) for part in replies.parts}) > 1:
            _refuse_odd_contents(result)
            result.drop_failures()
        return result

    def _doubtful(
        self, part: Part, nodes: Sequence[int], request: Message, expected: "_Expected"
    ) -> NDArray[np.bool_]:
        """Which replies of a part, (P,), may fail `_check`; the others would pass it."""
        training = request.metadata.message_type == MessageType.TRAIN
        sent = request.content.get(words.ARRAYS) if training else None
        came = words.ARRAYS in part.means or isinstance(part.records.get(words.ARRAYS), Stack)
        metrics = part.numbers(words.METRICS)
        everyone = np.full(len(part.rows), True)
        if (
            part.bytes_per_reply > self.config.max_reply_bytes
            or words.NUM_EXAMPLES not in metrics
            or isinstance(sent, ArrayRecord) != came
        ):
            return everyone
        # A check of the strategy's own wants to see every message, unless it can read columns.
        if training and self._own_check is not None and self._doubts is None:
            return everyone
        bad = metrics[words.NUM_EXAMPLES] < (1 if training else 0)
        for name, values in metrics.items():
            if name.endswith(words.NUM_EXAMPLES):
                if values.dtype.kind != "i":
                    return everyone
                bad = bad | (values < 0) | (values > self.config.max_examples)
        for key, record in part.records.items():
            if isinstance(record, Stack):
                if expected.signature(sent, key) not in (None, record.signature):
                    return everyone
                bad = bad | ~record.finite_C
            else:
                for values in record.values():
                    bad = bad | ~np.isfinite(values)
        if training and self._doubts is not None:
            bad = bad | self._doubts(part, nodes)
        return bad

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


def _part_kind(part: Part) -> tuple[object, ...]:
    records = tuple((key, isinstance(record, Stack)) for key, record in part.records.items())
    return records, tuple(part.means), tuple(part.numbers(words.METRICS))


class _Expected:
    """Shapes and dtypes of the arrays that were sent, read once per record."""

    def __init__(self) -> None:
        self._known: dict[int, Signature] = {}

    def signature(self, sent: object, key: str) -> Signature | None:
        if key != words.ARRAYS or not isinstance(sent, ArrayRecord):
            return None
        if id(sent) not in self._known:
            self._known[id(sent)] = signature_of(sent)
        return self._known[id(sent)]


def _one_line(error: Exception) -> str:
    """A reason fit for a log line, whatever a client wrote into it."""
    text = str(error) if isinstance(error, ReplyError | ValueError) else repr(error)
    safe = "".join(c if c.isprintable() else " " for c in text[: 10 * _REASON_LENGTH])
    return " ".join(safe.split())[:_REASON_LENGTH] or type(error).__name__
