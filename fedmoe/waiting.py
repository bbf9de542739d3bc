"""Waiting for clients that are other machines: until when, and what becomes of late replies.

Letters: s, by how many rounds a reply is late.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Error, Message, MetricRecord
from flwr.serverapp import Grid

from fedmoe.guard import REFUSED
from fedmoe.messages import words
from fedmoe.messages.riding import has_trained
from fedmoe.messages.seams import set_message_id
from fedmoe.profiling import section
from fedmoe.schema import RuntimeBase

# Between two looks for replies, in seconds: a tenth of the time waited so far, within these.
_SHORTEST, _LONGEST, _SHARE = 0.02, 0.5, 0.1


@dataclass(frozen=True)
class Late:
    """A reply to an earlier round's training.

    Attributes:
        request: what it replies to.
        reply: what came.
        rounds: s, at least 1.
    """

    request: Message
    reply: Message
    rounds: int


@dataclass(frozen=True)
class Came:
    """What a phase has brought.

    Attributes:
        replies: to this phase's messages.
        late: replies to earlier ones, from other nodes.
        cut_off: whether the phase was closed before its timeout.
    """

    replies: Iterable[Message]
    late: Sequence[Late] = ()
    cut_off: bool = False


@dataclass(frozen=True)
class _Asked:
    """A message without a reply as yet."""

    request: Message
    round: int
    training: bool


class Waiting:
    """Sends a phase's messages over a grid that is to be polled, and waits as long as is worth it.

    A client that was not waited for is busy: until its reply comes it is better not asked again,
    since Flower's clients answer one message after the other. After `runtime.late_rounds` its reply
    is given up.

    Attributes:
        grid: any Flower grid whose replies come later.
        config: `round_timeout`, `min_replies`, `stragglers` and what belongs to these.
    """

    def __init__(
        self,
        grid: Grid,
        config: RuntimeBase,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Wait on `grid`; the clock counts seconds, and `sleep` lets some pass."""
        self.grid, self.config = grid, config
        self._clock, self._sleep = clock, sleep
        self._asked: dict[str, _Asked] = {}  # by message id, of earlier phases
        self._came: list[tuple[_Asked, Message]] = []  # late, for the next training

    def busy(self, number: int) -> set[int]:
        """Nodes that still work on an earlier message in round `number`, or have just replied late.

        The latter are not asked either: a client counts once in a round.
        """
        self._give_up(lambda one: number - one.round > self.config.late_rounds)
        late = [asked for asked, _ in self._came]
        return {one.request.metadata.dst_node_id for one in (*self._asked.values(), *late)}

    def exchange(self, sent: Sequence[Message], number: int, *, training: bool) -> Came:
        """Send messages, and wait for replies.

        Args:
            sent: one message for each node; whoever is busy and asked again is not busy any more.
            number: of the round.
            training: whether late replies to earlier training may be handed out now.

        Returns:
            The replies. Late ones come with `runtime.stragglers=late` alone.
        """
        nodes = {message.metadata.dst_node_id for message in sent}
        self._give_up(lambda one: one.request.metadata.dst_node_id in nodes)
        with section("train" if training else "evaluate"):
            waiting = self._pushed(sent)
            replies, cut_off = self._poll(waiting, len(sent))
        for message_id, message in waiting.items():
            self._asked[message_id] = _Asked(message, number, training)
        late: list[Late] = []
        if training:
            late = [Late(one.request, r, number - one.round) for one, r in self._came]
            self._came = []
        return Came(replies, late, cut_off)

    def _pushed(self, sent: Sequence[Message]) -> dict[str, Message]:
        """Send messages; those that could be sent, by message id."""
        waiting = {}
        # Flower's HTTP grid returns `None` for what it could not send, or nothing at all.
        for message_id, message in zip(self.grid.push_messages(sent), sent, strict=False):
            if message_id:
                set_message_id(message, message_id)
                waiting[message_id] = message
        return waiting

    def _poll(self, waiting: dict[str, Message], asked: int) -> tuple[list[Message], bool]:
        """Collect replies, which are taken out of `waiting`; returns whether some were cut off."""
        start = self._clock()
        deadline = end = start + self.config.round_timeout
        replies: list[Message] = []
        while True:
            replies += self._pull(waiting)
            now = self._clock()
            if self.config.stragglers != "wait" and self._enough(replies, asked):
                end = min(end, now + self.config.cut_off_grace)
            if not waiting or now >= end:
                return replies, bool(waiting) and end < deadline
            pause = min(max(_SHARE * (now - start), _SHORTEST), _LONGEST)
            self._sleep(min(pause, end - now))

    def _pull(self, waiting: dict[str, Message]) -> list[Message]:
        """What has come for this phase; what has come for others is kept, or dropped."""
        found = []
        for reply in self.grid.pull_messages([*waiting, *self._asked]):
            message_id = reply.metadata.reply_to_message_id
            if message_id in waiting:
                found.append(_as_from_node(reply, waiting.pop(message_id)))
            elif message_id in self._asked:
                asked = self._asked.pop(message_id)
                wanted = self.config.stragglers == "late" and asked.training
                if wanted and has_trained(reply):
                    self._came.append((asked, reply))
        return found

    def _enough(self, replies: Sequence[Message], asked: int) -> bool:
        """Whether the share of the clients is there, of those that have not failed."""
        good = sum(has_trained(reply) for reply in replies)
        able = asked - (len(replies) - good)
        return good >= max(self.config.min_replies, math.ceil(self.config.cut_off_share * able))

    def _give_up(self, hopeless: Callable[[_Asked], bool]) -> None:
        self._asked = {key: one for key, one in self._asked.items() if not hopeless(one)}
        self._came = [pair for pair in self._came if not hopeless(pair[0])]


def _as_from_node(reply: Message, request: Message) -> Message:
    """A reply as that of the node that was asked.

    An error that the server's side made in its place is its failure; content in another's name is
    refused.
    """
    if reply.metadata.src_node_id == request.metadata.dst_node_id:
        return reply
    error = reply.error if reply.has_error() else Error(REFUSED, "came in another node's name")
    return Message(error, reply_to=request)


def late_weight(rounds: int, exponent: float) -> float:
    """What a reply that is s rounds late counts for: (1 + s)^-a.

    The polynomial weight of FedAsync (arXiv 1903.03934), there of a client's whole
    share of the model; here of its number of examples, next to those of other clients.

    Args:
        rounds: s, at least 0.
        exponent: a, at least 0.
    """
    return float((1.0 + rounds) ** -exponent)


def discount(late: Mapping[int, Late], good: Sequence[Message], exponent: float, key: str) -> None:
    """Let late replies count for fewer examples: n (1 + s)^-a, rounded, at least 1.

    Args:
        late: by node.
        good: replies that passed the guard; changed in place.
        exponent: a.
        key: of the metric by which the strategy weighs.
    """
    for reply in good:
        own = late.get(reply.metadata.src_node_id)
        metrics = reply.content.get(words.METRICS)
        if own is None or not isinstance(metrics, MetricRecord):
            continue
        count = metrics[key]
        assert isinstance(count, int | float)
        weighed = count * late_weight(own.rounds, exponent)
        metrics[key] = max(1, round(weighed)) if isinstance(count, int) else weighed
