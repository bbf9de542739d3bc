"""Who is there: the clients behind the nodes of a deployment, which come and go."""

import logging
import time
from collections.abc import Iterable, Mapping

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from typing_extensions import override

from fedmoe.errors import RunError
from fedmoe.lan.polling import polled
from fedmoe.messages import words
from fedmoe.messages.seams import readdressed, set_sender
from fedmoe.ordered_grid import OrderedGrid, serialisable
from fedmoe.simulations.cohort_grid import FIRST_NODE_ID

_LOG = logging.getLogger("fedmoe.lan.Roster")
_STEP = 0.05  # seconds between two looks
_FAREWELL_SECONDS = 5.0
_LIFE = 2**32  # node ids of a client's second life are as much higher


class Roster(OrderedGrid):
    """A grid whose nodes are clients: client k is node k + 2, as where clients are simulated.

    Flower's node ids are new whenever a client connects, while strategies remember clients by
    their nodes; so a client keeps its node here for as long as it keeps its private state. One
    that comes back without that is another node, which has been told nothing yet.

    A node of Flower's that comes in the middle of a run is asked which client it is, and counts
    from the next time that nodes are asked for after it has answered. Where clients have keys, a
    node can be one client alone. Where they have none and two say that they are the same client,
    the second has to wait until the first has gone: for a client that was killed and is a new
    node now, that is when Flower has found out.

    One that does not know its number, since it has a table of its own and no share of another,
    takes the number that it is offered.

    Attributes:
        num_clients: among whom the data are divided, there or not; 0 before `wait_for`.
    """

    def __init__(
        self, grid: Grid, *, resumed: bool = False, by_key: Mapping[int, int] | None = None
    ) -> None:
        """Ask nobody yet.

        Args:
            grid: Flower's.
            resumed: whether the run goes on, so that clients should have their state.
            by_key: clients by Flower's node; `None` where clients have no keys.
        """
        super().__init__(grid, {})
        self._resumed, self._by_key = resumed, by_key
        self.num_clients = 0
        self._flower: dict[int, int] = {}  # Flower's node by client
        self._lives: dict[int, int] = {}  # by client, how often it came without its state
        self._asked: dict[str, int] = {}  # Flower's node by question
        self._offered: dict[int, int] = {}  # a number by Flower's node, until it has answered
        self._sent: dict[str, tuple[int, int]] = {}  # by message, Flower's node and ours
        self._known: set[int] = set()  # Flower's nodes that have been asked
        self._rivals: dict[int, tuple[int, bool]] = {}  # by node: a client that is there, and state

    def client_id(self, node_id: int) -> int:
        """The client behind a node."""
        return node_id % _LIFE - FIRST_NODE_ID

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are connected and known, by client."""
        self._look()
        return [self._node(client) for client in sorted(self._flower)]

    @override
    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """See `Grid`; nothing for a client that has gone."""
        numbers, sent, places, nodes = list[str](), list[Message](), list[int](), list[int]()
        for message in serialisable(messages):
            node = message.metadata.dst_node_id
            if (flower := self._flower.get(self.client_id(node))) is not None:
                sent.append(readdressed(message, flower))
                places.append(len(numbers))
                nodes.append(node)
            numbers.append("")
        told = self._grid.push_messages(sent) if sent else []
        for place, node, message, number in zip(places, nodes, sent, told, strict=False):
            if number:
                numbers[place] = number
                self._sent[number] = (message.metadata.dst_node_id, node)
        return numbers

    @override
    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """See `Grid`; replies are those of the nodes that were asked."""
        replies = list(self._grid.pull_messages(message_ids))
        for reply in replies:
            flower, node = self._sent.pop(reply.metadata.reply_to_message_id or "", (0, 0))
            if node and reply.metadata.src_node_id == flower:
                set_sender(reply, node)
                if reply.has_error() and reply.error.code == words.STRANGER:
                    self._forget(flower)
        return replies

    @override
    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See `Grid`."""
        return polled(self, messages, timeout)

    def wait_for(self, least: int, seconds: float, num_clients: int) -> None:
        """Wait until enough clients are known.

        Args:
            least: how many are enough.
            seconds: that they may take.
            num_clients: among whom the data are divided; others are left out.

        Raises:
            RunError: they did not come in time; names those that did.
        """
        self.num_clients = num_clients
        deadline = time.monotonic() + seconds
        while len(found := list(self.get_node_ids())) < least:
            if time.monotonic() > deadline:
                names = ", ".join(str(self.client_id(node)) for node in found) or "none"
                raise RunError(
                    f"{len(found)} of {least} clients came within {seconds:g} seconds "
                    f"(runtime.min_clients, runtime.wait); came: {names}"
                )
            time.sleep(_STEP)
        _LOG.info("%d clients are there", len(found))

    def say_farewell(self, status: str) -> None:
        """Tell the clients that their run is over, so that they may end; no answer is needed."""
        content = RecordDict({words.CONFIG: ConfigRecord({words.FAREWELL: status})})
        told = [Message(content, node, MessageType.QUERY) for node in self.get_node_ids()]
        if told:
            self.send_and_receive(told, timeout=_FAREWELL_SECONDS)

    def _node(self, client: int) -> int:
        return client + FIRST_NODE_ID + _LIFE * self._lives.get(client, 0)

    def _look(self) -> None:
        """Forget who has gone, ask who has come, and hear who has answered."""
        connected = set(self._grid.get_node_ids())
        for gone in self._known - connected:
            self._forget(gone)
        for node, (client, has_state) in list(self._rivals.items()):
            if client not in self._flower:
                del self._rivals[node]
                self._take_in(node, client, has_state=has_state)
        if new := sorted(connected - self._known):
            questions = [self._question(node) for node in new]
            told = self._grid.push_messages(questions)
            self._asked |= {number: node for number, node in zip(told, new, strict=True) if number}
            self._known |= set(new)
        if self._asked:
            for reply in self._grid.pull_messages(list(self._asked)):
                question = reply.metadata.reply_to_message_id or ""
                if question in self._asked:
                    self._hear(self._asked.pop(question), reply)

    def _forget(self, flower: int) -> None:
        """Be ready to ask a node again who it is: its process is not the one that answered."""
        self._known.discard(flower)
        self._offered.pop(flower, None)
        self._rivals.pop(flower, None)
        self._asked = {number: node for number, node in self._asked.items() if node != flower}
        for client in [c for c, node in self._flower.items() if node == flower]:
            _LOG.warning("client %d has gone", client)
            del self._flower[client]

    def _question(self, flower: int) -> Message:
        """Which client are you, and if you do not know: what about this number?"""
        taken = {*self._flower, *self._offered.values()}
        if self._by_key is not None:
            number = self._by_key.get(flower)
        else:
            # Numbers that have been somebody's go last: that one may come again.
            free = [client for client in range(self.num_clients) if client not in taken]
            number = min(free, key=lambda client: (client in self._lives, client), default=None)
        content = RecordDict()
        if number is not None:
            self._offered[flower] = number
            content[words.CONFIG] = ConfigRecord({words.OFFERED: number})
        return Message(content, flower, MessageType.QUERY)

    def _hear(self, node: int, reply: Message) -> None:
        """Take a node in, or note why not."""
        self._offered.pop(node, None)
        if reply.has_error() and reply.error.code != words.CLIENT_FAILED:
            self._known.discard(node)  # it was killed, or cut off, before it had answered
            return
        if not reply.has_content():
            _refuse(node, reply.error.reason or "it cannot say which client it is")
            return
        record = reply.content.get(words.METRICS)
        told = record if isinstance(record, MetricRecord) else MetricRecord()
        client = told.get(words.PARTITION_ID)
        if type(client) is not int or not 0 <= client < self.num_clients:
            allowed = f"0 to {self.num_clients - 1}"
            _refuse(node, f"it says that it is client {client}; there are {allowed}")
            return
        if self._by_key is not None and (owner := self._by_key.get(node)) != client:
            _refuse(node, f"it says that it is client {client}, with the key of client {owner}")
            return
        has_state = bool(told.get(words.STATE_ROUND))
        if self._flower.get(client, node) != node:
            self._rivals[node] = client, has_state
            _LOG.warning("node %d has to wait: client %d is there already", node, client)
            return
        self._take_in(node, client, has_state=has_state)

    def _take_in(self, node: int, client: int, *, has_state: bool) -> None:
        """Let a client be reached at one of Flower's nodes."""
        came_before = client in self._lives
        self._lives.setdefault(client, 0)
        if (came_before or self._resumed) and not has_state:
            self._lives[client] += 1
        self._flower[client] = node
        _LOG.info("client %d has come%s", client, " again" if came_before else "")


def _refuse(node: int, reason: str) -> None:
    _LOG.warning("node %d is left out: %s", node, " ".join(reason.split())[:300])
