"""The Flower ServerApp, for `flwr run` and SuperLinks: the same rounds on Flower's own grid."""

import time

from flwr.app import Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedmoe.app_config import resolve
from fedmoe.config import from_json
from fedmoe.errors import RunError
from fedmoe.messages import words
from fedmoe.ordered_grid import OrderedGrid
from fedmoe.serving import Server

app = ServerApp()

_WAIT_SECONDS = 60.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment on the nodes that are connected, and leave a run directory behind.

    Raises:
        FedmoeError: bad data or configuration, or a run that cannot go on.
    """
    num_nodes = _count_nodes(grid)
    config = from_json(resolve(context, num_nodes))
    Server(num_nodes, config=config, grid=OrderedGrid(grid, _partitions(grid))).run()


def _partitions(grid: Grid) -> dict[int, int]:
    """Ask each node which partition it holds; a node that does not say is left out."""
    ask = [Message(RecordDict(), node, MessageType.QUERY) for node in grid.get_node_ids()]
    found: dict[int, int] = {}
    for reply in grid.send_and_receive(ask, timeout=_WAIT_SECONDS):
        record = reply.content.get(words.METRICS) if reply.has_content() else None
        partition = record.get(words.PARTITION_ID) if isinstance(record, MetricRecord) else None
        if type(partition) is int and partition not in found.values():
            found[reply.metadata.src_node_id] = partition
    return found


def _count_nodes(grid: Grid) -> int:
    """Wait until the number of connected nodes has settled, and return it.

    Raises:
        RunError: no node came.
    """
    before, deadline = 0, time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        now = len(list(grid.get_node_ids()))
        if now and now == before:
            return now
        before = now
        time.sleep(1.0)
    if not before:
        raise RunError(f"no node connected within {_WAIT_SECONDS:.0f} seconds")
    return before
