"""The reply guard: what every reply must satisfy before a strategy sees it.

Stock strategies average whatever comes and end the run at the first malformed reply; a strategy
behind the guard only sees replies that fit, and a bad one is that client's recorded failure.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from fedmoe.errors import ReplyError
from fedmoe.guard.columns import doubtful, part_kind
from fedmoe.guard.distance import too_far
from fedmoe.guard.message_check import MessageCheck, one_line
from fedmoe.guard.routing import RoutingCheck
from fedmoe.messages import words
from fedmoe.messages.arrays import signature_of
from fedmoe.messages.replies import Replies
from fedmoe.schema import RuntimeBase

SILENT = "no reply before the deadline"
REFUSED = 1001  # code of an error reply that stands for one which was refused; none of Flower's


@dataclass
class Inspection:
    """A phase's replies after the guard.

    Attributes:
        good: replies that the strategy may see; messages by node id, columns as they were asked.
        failures: reason by node id, for everyone else who was asked.
        refused: nodes among these that sent something which is not allowed; the others were
            silent, or said themselves that they failed.
        bytes_up: bytes of each good reply, by node id.
    """

    good: Sequence[Message] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    bytes_up: dict[int, int] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)

    def fail(self, node: int, error: Exception, reply: Message) -> None:
        """Note what is wrong with a node's reply."""
        self.failures[node] = one_line(error)
        if not reply.has_error() or reply.error.code == REFUSED:
            self.refused.add(node)

    def refuse(self, reasons: Mapping[int, str]) -> None:
        """Refuse the replies of some nodes."""
        self.failures |= reasons
        self.refused |= reasons.keys()
        self.drop_failures()

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
    """Checks keys, shapes, dtypes, finiteness, counts, bytes and lengths of replies.

    A strategy may add a check of its own: a method `check_reply(message)` that raises
    `ValueError`. Where replies are stacked, a method `doubtful_replies(part, nodes)` spares the
    messages: it returns which of them, (P,), `check_reply` is to look at; the others are good.
    Arrays must come back in the shapes in which they were sent; a method
    `reply_signature(signature)` says otherwise. All replies must hold the same records, but for
    those whose keys are in an attribute `loose_records`.

    Args:
        config: the limits.
        strategy: see above.
        routing: judges what clients say of their router; `None` if the model has none.
    """

    def __init__(
        self,
        config: RuntimeBase,
        strategy: Strategy | None = None,
        routing: RoutingCheck | None = None,
    ) -> None:
        self.config, self._strategy, self._routing = config, strategy, routing
        self._doubts = getattr(strategy, "doubtful_replies", None)
        self._loose: frozenset[str] = getattr(strategy, "loose_records", frozenset())

    def inspect(
        self, sent: Sequence[Message], replies: Iterable[Message], silent: str = SILENT
    ) -> Inspection:
        """Sort the replies to `sent` into good ones and failures; order does not matter.

        Args:
            sent: to each node at most one message.
            replies: what came.
            silent: the reason of those who did not reply.
        """
        if (
            isinstance(replies, Replies)
            and replies.requests is sent
            and len(set(replies.nodes)) == len(replies)
        ):
            return self._inspect_columns(replies)
        result, good = Inspection(), list[Message]()
        asked = {message.metadata.dst_node_id: message for message in sent}
        seen: set[int] = set()
        check = MessageCheck(self.config, self._strategy, self._routing)
        for reply in sorted(replies, key=lambda one: one.metadata.src_node_id):
            node = reply.metadata.src_node_id
            if node not in asked:
                continue  # nobody to blame: the network delivered what nobody asked for
            try:
                if node in seen:
                    raise ReplyError("more than one reply")
                seen.add(node)
                _check_answers(reply, asked[node])
                size = check(reply, asked[node])
            except Exception as error:  # hostile input may raise anything
                result.fail(node, error, reply)
                continue
            good.append(reply)
            result.bytes_up[node] = size
        result.good = good
        for node in asked.keys() - seen:
            result.failures[node] = silent
        result.drop_failures()
        result.refuse(_odd_contents(result.good, self._loose))
        self._refuse_far(result, sent, asked)
        return result

    def _refuse_far(
        self, result: Inspection, sent: Sequence[Message], asked: Mapping[int, Message]
    ) -> None:
        """Refuse updates that are too long: strategies take what is finite for what is meant."""
        if not sent or sent[0].metadata.message_type != MessageType.TRAIN:
            return
        good = result.good
        if not isinstance(good, Replies):
            requests = [asked[reply.metadata.src_node_id] for reply in good]
            good = Replies(requests, [], dict(enumerate(good)))
        result.refuse(too_far(good, self.config))

    def _inspect_columns(self, replies: Replies) -> Inspection:
        """The same verdicts; a message is made only of a reply that may be bad."""
        check = MessageCheck(self.config, self._strategy, self._routing)
        nodes, result = replies.nodes, Inspection()
        sizes = np.zeros(len(replies), dtype=np.int64)
        suspect = np.full(len(replies), False)
        suspect[list(replies.plain)] = True
        for part in replies.parts:
            sizes[part.rows] = part.bytes_per_reply
            request = replies.requests[int(part.rows[0])]
            own = [nodes[row] for row in part.rows.tolist()]
            suspect[part.rows] |= doubtful(part, own, request, check, self._doubts)
        good = np.full(len(replies), True)
        for row in np.flatnonzero(suspect).tolist():
            try:
                sizes[row] = check(replies[row], replies.requests[row])
            except Exception as error:
                result.fail(nodes[row], error, replies[row])
                good[row] = False
        result.good = replies.select(np.flatnonzero(good))
        result.bytes_up = {
            node: size
            for node, size, passed in zip(nodes, sizes.tolist(), good.tolist(), strict=True)
            if passed
        }
        single = good[list(replies.plain)].any()
        if single or len({part_kind(part, self._loose) for part in replies.parts}) > 1:
            result.refuse(_odd_contents(result.good, self._loose))
        self._refuse_far(result, replies.requests, {})
        return result


def _check_answers(reply: Message, request: Message) -> None:
    """Refuse a reply to another message: one of an earlier round, say, sent again.

    Raises:
        ReplyError: it is one.
    """
    answered = reply.metadata.reply_to_message_id
    if answered != request.metadata.message_id:
        raise ReplyError(f"replies to message {answered[:16]!r}, which is not this round's")


def _odd_contents(replies: Sequence[Message], loose: frozenset[str]) -> dict[int, str]:
    """All replies must hold the same metrics and records, but for the loose ones.

    Strategies average metrics by name, and Flower's own refuse the whole round if one reply has
    a record more than the others.

    Returns:
        The reason by node id, for those that differ from most.
    """
    kinds = {
        (
            tuple((k, _record_kind(k, own)) for k, own in r.content.items() if k not in loose),
            tuple(r.content[words.METRICS]),
        )
        for r in replies
    }
    if len(kinds) <= 1:
        return {}
    labels = [_labels(reply.content, loose) for reply in replies]
    usual = Counter(labels).most_common(1)[0][0]
    odd = "differs from the other replies in "
    return {
        reply.metadata.src_node_id: one_line(ReplyError(odd + ", ".join(sorted(own ^ usual))))
        for reply, own in zip(replies, labels, strict=True)
        if own != usual
    }


def _labels(content: RecordDict, loose: frozenset[str]) -> frozenset[str]:
    """What a reply holds: its records, and the names of its metrics."""
    records = {
        f"{key} ({_record_kind(key, record)})"
        for key, record in content.items()
        if key not in loose
    }
    return frozenset(records.union(content[words.METRICS]))


def _record_kind(key: str, record: object) -> str:
    if isinstance(record, ArrayRecord):
        # Loads are averaged without knowing how many experts there are.
        return f"arrays {signature_of(record)}" if key == words.LOAD else "arrays"
    return "metrics" if isinstance(record, MetricRecord) else "config"
