"""What our grids have in common: nodes by client, and a whole phase answered in one call."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedmoe.data.federation import Ints
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.seams import (
    SERVER_NODE_ID,
    empty_run,
    ensure_task_identity,
    set_message_id,
)

FIRST_NODE_ID = SERVER_NODE_ID + 1  # client k is node k + 2
_NODE_UNAVAILABLE = 5  # Flower's error code


def clients_of(nodes: Sequence[int]) -> Ints:
    """The clients behind nodes, (C,)."""
    return np.asarray(nodes, dtype=np.int64) - FIRST_NODE_ID


class CohortGrid(Grid):
    """A Flower grid whose clients are simulated.

    Attributes:
        num_clients: K; client k is node k + 2.
    """

    def __init__(self, num_clients: int) -> None:
        ensure_task_identity()
        self.num_clients = num_clients
        self._run = empty_run(run_id=1)
        self._waiting: dict[str, Message] = {}
        self._sent = 0

    @abstractmethod
    def answer(self, messages: Sequence[Message], clients: Ints) -> Iterable[Message]:
        """Answer messages to the clients (C,); a client may be silent."""

    def close(self) -> None:
        """Give back what the grid holds; it cannot be used afterwards."""

    def __len__(self) -> int:
        """Number of clients."""
        return self.num_clients

    def set_run(self, run: Run) -> None:
        """See `Grid`."""
        self._run = run

    @property
    def run(self) -> Run:
        """See `Grid`."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See `Grid`."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> range:
        """All clients' node ids, by client."""
        return range(FIRST_NODE_ID, FIRST_NODE_ID + self.num_clients)

    def client_id(self, node_id: int) -> int:
        """The client behind a node."""
        return node_id - FIRST_NODE_ID

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer the messages now; the replies wait to be pulled."""
        sent = self.numbered(messages)
        for reply in self._deliver(sent):
            self._waiting[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Each reply once."""
        return [self._waiting.pop(key) for key in message_ids if key in self._waiting]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Answer the messages. Clients compute in this very call, so no deadline can pass."""
        del timeout
        return self._deliver(
            messages if isinstance(messages, Broadcast) else self.numbered(messages)
        )

    def numbered(self, messages: Iterable[Message]) -> list[Message]:
        """Number messages as a SuperLink does, so that a reply says what it replies to."""
        sent = messages if isinstance(messages, list) else list(messages)
        for message in sent:
            self._sent += 1
            set_message_id(message, str(self._sent))
        return sent

    def _deliver(self, messages: Sequence[Message]) -> Iterable[Message]:
        """Hand each message to its client; a message to nobody is an error reply."""
        nodes = (
            messages.nodes
            if isinstance(messages, Broadcast)
            else [message.metadata.dst_node_id for message in messages]
        )
        known = [FIRST_NODE_ID <= node < FIRST_NODE_ID + self.num_clients for node in nodes]
        if all(known):
            return self.answer(messages, clients_of(nodes))
        own = [message for message, mine in zip(messages, known, strict=True) if mine]
        lost = [message for message, mine in zip(messages, known, strict=True) if not mine]
        error = Error(_NODE_UNAVAILABLE, "no such node")
        return [*self._deliver(own), *(Message(error, reply_to=message) for message in lost)]
