"""Flower's grid of a deployment, asking for replies more often than every 3 seconds.

The grid that a SuperLink hands to a ServerApp sleeps 3 seconds between two looks, and 1 second
where a reply's arrays are still under way. This one looks after 20 milliseconds, and then less
and less often while clients are at work. `tests/unit/lan/test_fast_grid.py` holds Flower to what
is relied on here.
"""

import logging
import time
from collections.abc import Callable, Iterable
from typing import cast

from flwr.app import Message, RecordDict
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.superlink.grid.http_grid import HttpGrid
from typing_extensions import override

from fedmoe.lan.packing import pack, unpack
from fedmoe.lan.polling import polled
from fedmoe.messages.seams import set_message_id, with_content
from fedmoe.passing_grid import PassingGrid

_LOG = logging.getLogger("fedmoe.lan.FastGrid")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.2  # seconds until an object is asked for again
_ON_ITS_WAY = 0.1  # seconds without an object until its sender is looked for


class FastGrid(PassingGrid):
    """Sends packed messages by Flower's grid, and waits for the replies by itself."""

    def __init__(self, grid: HttpGrid) -> None:
        super().__init__(grid)
        self._http = grid

    @override
    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid`; contents that several messages share still are one."""
        known: dict[int, RecordDict] = {}
        held, sent = list(messages), []
        for message in held:
            content = message.content
            if id(content) not in known:
                known[id(content)] = pack(content)
            sent.append(with_content(message, known[id(content)]))
        return self._grid.push_messages(sent)

    @override
    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid`; a reply whose arrays never came is left out."""
        client = self._http._runtime_client
        pulled = client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        run_id, replies = self._http.run.run_id, []
        for told, tree in zip(pulled.messages_list, pulled.message_object_trees, strict=True):
            number = told.metadata.message_id
            pull = self._while_there(
                make_pull_object_fn_protobuf(client.PullObject, self._http.node, run_id),
                told.metadata.src_node_id,
            )
            ids = [part.object_id for part in iterate_object_tree(tree)]
            try:
                contents = pull_objects(
                    ids, pull, max_time=60.0,
                    initial_backoff=_FIRST_PAUSE, backoff_cap=_LONGEST_PAUSE,
                )  # fmt: skip
            except ObjectPullError as error:
                _LOG.warning("a reply could not be fetched: %s", error)
                continue
            client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=self._http.node, run_id=run_id, message_object_id=number
                )
            )
            message = cast(Message, inflate_object_from_contents(number, contents))
            set_message_id(message, number)
            replies.append(_unpacked(message))
        return replies

    def _while_there(self, pull: Callable[[str], bytes], node: int) -> Callable[[str], bytes]:
        """A pull that does not wait for the rest of a reply whose sender has gone."""
        began = time.monotonic()

        def pulled(object_id: str) -> bytes:
            try:
                return pull(object_id)
            except ObjectUnavailableError:
                late = time.monotonic() - began > _ON_ITS_WAY
                if late and node not in self._grid.get_node_ids():
                    raise ObjectPullError(object_id, f"node {node} has gone") from None
                raise

        return pulled

    @override
    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See `Grid`."""
        return polled(self, messages, timeout)


def fast(grid: Grid) -> Grid:
    """The grid of a SuperLink made faster; any other one as it is."""
    return FastGrid(grid) if isinstance(grid, HttpGrid) else grid


def _unpacked(message: Message) -> Message:
    """A reply as its sender made it; one that is not what it says stays as it is: see the guard."""
    if not message.has_content():
        return message
    try:
        return with_content(message, unpack(message.content))
    except ValueError as error:
        _LOG.warning("node %d: %s", message.metadata.src_node_id, error)
        return message
