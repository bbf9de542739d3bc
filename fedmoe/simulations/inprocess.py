"""A Flower `Grid` without a network: whole cohorts are answered in this process.

Flower's simulation starts workers, stores messages and polls; here a phase's messages go to
`clients.answer` in one call, so that a cohort trains as one batch. Every client has a node id
and a `Context` of its own, as in a deployment.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from numpy.typing import NDArray

from fedmoe.clients import answer
from fedmoe.messages.arrays import detached, to_record
from fedmoe.messages.seams import (
    SERVER_NODE_ID,
    empty_run,
    ensure_task_identity,
    set_message_id,
    with_content,
)

FIRST_NODE_ID = SERVER_NODE_ID + 1  # client k is node k + 2
_NODE_UNAVAILABLE = 5  # Flower's error code

Answer = Callable[[Sequence[Message], Sequence[Context]], list[Message]]


class InProcessGrid(Grid):
    """Delivers messages to clients of this process and returns their replies at once.

    Clients other than ours get copies of the records, which they may change as they like.

    Attributes:
        contexts: each client's context, by client id.
    """

    def __init__(self, config_json: str, num_clients: int, answer: Answer = answer) -> None:
        ensure_task_identity()
        self._run = empty_run(run_id=1)
        self._answer = answer
        self._replies: dict[str, Message] = {}
        self._sent = 0
        self.contexts = [
            Context(
                run_id=1,
                node_id=FIRST_NODE_ID + client,
                node_config={"partition-id": client, "num-partitions": num_clients},
                state=RecordDict(),
                run_config={"config": config_json},
            )
            for client in range(num_clients)
        ]

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

    def get_node_ids(self) -> Iterable[int]:
        """All clients' node ids, by client."""
        return range(FIRST_NODE_ID, FIRST_NODE_ID + len(self.contexts))

    def client_id(self, node_id: int) -> int:
        """The client behind a node."""
        return node_id - FIRST_NODE_ID

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer the messages now; the replies wait to be pulled."""
        sent = list(messages)
        for message in sent:
            self._sent += 1
            set_message_id(message, str(self._sent))
        for reply in self._deliver(sent):
            self._replies[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Each reply once."""
        return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Answer the messages. Clients compute in this very call, so no deadline can pass."""
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, messages: list[Message]) -> list[Message]:
        """Hand each message to its client, in records of the client's own."""
        known: list[Message] = []
        unknown: list[Message] = []
        for message in messages:
            client = self.client_id(message.metadata.dst_node_id)
            (known if 0 <= client < len(self) else unknown).append(message)
        received = known
        if self._answer is not answer:  # ours reads only; who knows what another does
            received = [with_content(message, detached(message.content)) for message in known]
        contexts = [self.contexts[self.client_id(m.metadata.dst_node_id)] for m in known]
        return self._answer(received, contexts) + [
            Message(Error(_NODE_UNAVAILABLE, "no such node"), reply_to=m) for m in unknown
        ]

    def __len__(self) -> int:
        """Number of clients."""
        return len(self.contexts)

    def state(self) -> dict[str, NDArray[Any]]:
        """All clients' private arrays, by `client/record/name`."""
        return {
            f"{client}/{key}/{name}": array.numpy()
            for client, context in enumerate(self.contexts)
            for key, record in context.state.array_records.items()
            for name, array in record.items()
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Give each client its private arrays back."""
        grouped: dict[tuple[int, str], dict[str, NDArray[Any]]] = {}
        for path, array in arrays.items():
            number, key, name = path.split("/", maxsplit=2)
            grouped.setdefault((int(number), key), {})[name] = np.asarray(array)
        for (client, key), named in grouped.items():
            record: ArrayRecord = to_record(named)
            self.contexts[client].state[key] = record
