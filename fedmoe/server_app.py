"""The Flower ServerApp, for `flwr run` and SuperLinks: the same rounds on Flower's own grid."""

import logging
import time
from datetime import datetime
from pathlib import Path

from flwr.app import Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedmoe.app_config import resolve
from fedmoe.clients import Experiment, load_experiment
from fedmoe.errors import ConfigError, RunError
from fedmoe.messages import words
from fedmoe.ordered_grid import OrderedGrid
from fedmoe.run import FederationRun, conduct
from fedmoe.schema import ExperimentConfig
from fedmoe.tracking import RunDirectory, configure_logging

app = ServerApp()

_LOG = logging.getLogger("fedmoe.server_app")
_WAIT_SECONDS = 60.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment on the nodes that are connected, and leave a run directory behind.

    Raises:
        FedmoeError: bad data or configuration, or a run that cannot go on.
    """
    num_nodes = _count_nodes(grid)
    experiment = load_experiment(resolve(context, num_nodes))
    config = experiment.config
    _check_clients(experiment, num_nodes)
    with (
        _run_directory(config) as directory,
        configure_logging(config.tracking, directory.path / "run.log"),
    ):
        _LOG.info("%d nodes; results go to %s", num_nodes, directory.path)
        ordered = OrderedGrid(grid, _partitions(grid))
        conduct(FederationRun(experiment, ordered, directory, ordered.client_id))


def _run_directory(config: ExperimentConfig) -> RunDirectory:
    """A new one below the working directory, which is the SuperLink's, or the one to resume."""
    if config.resume is not None:
        return RunDirectory.reopen(Path(config.resume))
    started = datetime.now()  # a folder's name, in the user's own time
    path = Path("runs") / f"{started:%Y-%m-%d}" / f"{started:%H-%M-%S}-{config.name}"
    return RunDirectory.claim(path.absolute())


def _check_clients(experiment: Experiment, num_nodes: int) -> None:
    """Each node is one client; a natural partition has as many clients as it has."""
    if num_nodes != experiment.data.num_clients:
        raise ConfigError(
            f"{num_nodes} nodes are connected, but {experiment.data.name} has "
            f"{experiment.data.num_clients} natural clients; start as many nodes"
        )


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
