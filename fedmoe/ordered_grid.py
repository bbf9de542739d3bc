"""A Flower grid whose nodes are listed by client, whatever ids Flower has given them."""

from collections.abc import Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from typing_extensions import override

from fedmoe.messages.arrays import plain
from fedmoe.messages.seams import with_content
from fedmoe.passing_grid import PassingGrid


class OrderedGrid(PassingGrid):
    """Passes everything on to another grid, and orders its nodes.

    Strategies draw clients from the order of `get_node_ids`; Flower's ids are random in every
    run, so that without an order of ours a seed would not fix who takes part.
    """

    def __init__(self, grid: Grid, client_of: Mapping[int, int]) -> None:
        super().__init__(grid)
        self._client_of = client_of

    def client_id(self, node_id: int) -> int:
        """The client behind a node; a node that came later stands for itself."""
        return self._client_of.get(node_id, node_id)

    @override
    def get_node_ids(self) -> Iterable[int]:
        """The connected nodes, by client."""
        return sorted(self._grid.get_node_ids(), key=self.client_id)

    @override
    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid`."""
        return self._grid.push_messages(serialisable(messages))

    @override
    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See `Grid`."""
        return self._grid.send_and_receive(serialisable(messages), timeout=timeout)


def serialisable(messages: Iterable[Message]) -> list[Message]:
    """The messages with records that Flower can send; those that share arrays still do."""
    known: dict[int, RecordDict] = {}
    held = list(messages)
    sent = []
    for message in held:
        content = message.content
        if id(content) not in known:
            known[id(content)] = plain(content)
        sent.append(with_content(message, known[id(content)]))
    return sent
