"""Who is there: the clients behind the nodes of a deployment, which come and go."""

import logging
import time
from collections.abc import Iterable

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedmoe.errors import RunError
from fedmoe.messages import words
from fedmoe.ordered_grid import OrderedGrid

_LOG = logging.getLogger("fedmoe.lan.Roster")
_STEP = 0.05  # seconds between two looks
_FAREWELL_SECONDS = 5.0


class Roster(OrderedGrid):
    """A grid whose nodes are those that have said which client they are, in the clients' order.

    A node that comes in the middle of a run is asked, and counts from the next time that nodes
    are asked for after it has answered. Where two say that they are the same client, the one
    that said so last is: a client that was killed and started again is a new node, while
    Flower takes the old one for alive for up to a minute.
    """

    def __init__(self, grid: Grid) -> None:
        """Ask nobody yet."""
        self._clients: dict[int, int] = {}  # by node
        super().__init__(grid, self._clients)
        self._num_clients = 0
        self._asked: dict[str, int] = {}  # node by question
        self._refused: set[int] = set()

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are connected and known, by client."""
        self._look()
        return sorted(self._clients, key=self._clients.__getitem__)

    def wait_for(self, least: int, seconds: float, num_clients: int) -> None:
        """Wait until enough clients are known.

        Args:
            least: how many are enough.
            seconds: that they may take.
            num_clients: among whom the data are divided; others are left out.

        Raises:
            RunError: they did not come in time; names those that did.
        """
        self._num_clients = num_clients
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

    def _look(self) -> None:
        """Forget who has gone, ask who has come, and hear who has answered."""
        connected = set(self._grid.get_node_ids())
        for node in self._clients.keys() - connected:
            _LOG.warning("client %d has gone", self._clients.pop(node))
        known = self._clients.keys() | set(self._asked.values()) | self._refused
        if new := sorted(connected - known):
            questions = [Message(RecordDict(), node, MessageType.QUERY) for node in new]
            told = self.push_messages(questions)
            self._asked |= {number: node for number, node in zip(told, new, strict=True) if number}
        if self._asked:
            for reply in self.pull_messages(list(self._asked)):
                question = reply.metadata.reply_to_message_id or ""
                if question in self._asked:
                    self._hear(self._asked.pop(question), reply)

    def _hear(self, node: int, reply: Message) -> None:
        """Take a node in, or note why not."""
        if not reply.has_content():
            self._refuse(node, reply.error.reason or "it cannot say which client it is")
            return
        record = reply.content.get(words.METRICS)
        client = record.get(words.PARTITION_ID) if isinstance(record, MetricRecord) else None
        if type(client) is not int or not 0 <= client < self._num_clients:
            allowed = f"0 to {self._num_clients - 1}"
            self._refuse(node, f"it says that it is client {client}; there are {allowed}")
            return
        for other in [n for n, c in self._clients.items() if c == client]:
            _LOG.warning("client %d has come again; its earlier connection is dropped", client)
            del self._clients[other]
            self._refused.add(other)
        self._clients[node] = client
        _LOG.info("client %d has come", client)

    def _refuse(self, node: int, reason: str) -> None:
        self._refused.add(node)
        _LOG.warning("node %d is left out: %s", node, " ".join(reason.split())[:300])
