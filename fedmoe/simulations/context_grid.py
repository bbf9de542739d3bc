"""A grid for clients other than ours: each message goes to its client's own Flower context."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from numpy.typing import NDArray

from fedmoe.data.federation import Ints
from fedmoe.messages.arrays import detached, to_record
from fedmoe.messages.seams import with_content
from fedmoe.simulations.cohort_grid import FIRST_NODE_ID, CohortGrid

Answer = Callable[[Sequence[Message], Sequence[Context]], list[Message]]


class ContextGrid(CohortGrid):
    """Clients that are a function of messages and contexts.

    They get copies of the records, which they may change as they like.

    Attributes:
        contexts: each client's context, by client.
    """

    def __init__(self, config_json: str, num_clients: int, answer: Answer) -> None:
        super().__init__(num_clients)
        self._answer = answer
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

    def answer(self, messages: Sequence[Message], clients: Ints) -> Iterable[Message]:
        """See `CohortGrid`."""
        sent = self.numbered(messages)
        received = [with_content(message, detached(message.content)) for message in sent]
        return self._answer(received, [self.contexts[client] for client in clients.tolist()])

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
            self.contexts[client].state[key] = to_record(named)
