"""The Flower ServerApp, for `flwr run` and SuperLinks: the same rounds on Flower's own grid."""

import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path

from fedmoe.heap import quick_start, spare_all

with quick_start():
    from flwr.app import Context, Message, MessageType, MetricRecord, RecordDict
    from flwr.serverapp import Grid, ServerApp

    from fedmoe.app_config import resolve
    from fedmoe.config import from_json
    from fedmoe.errors import RunError
    from fedmoe.lan import NODES, RESUME, RUN_DIR
    from fedmoe.lan.fast_grid import fast
    from fedmoe.lan.processes import end_with_parent
    from fedmoe.lan.restart import goes_on
    from fedmoe.lan.roster import Roster
    from fedmoe.messages import words
    from fedmoe.ordered_grid import OrderedGrid
    from fedmoe.schema import ExperimentConfig, LanConfig
    from fedmoe.serving import Server
    from fedmoe.tracking import RunDirectory

app = ServerApp()

_WAIT_SECONDS = 60.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment on the nodes that are connected, and leave a run directory behind.

    Raises:
        FedmoeError: bad data or configuration, or a run that cannot go on.
    """
    quick = fast(grid)
    config = from_json(resolve(context.run_config))
    if isinstance(config.runtime, LanConfig):
        try:
            _run_on_lan(quick, config, config.runtime)
        finally:
            spare_all()  # Flower's process ends, which `fedmoe.server` waits for
        return
    num_nodes = _count_nodes(quick)
    config = from_json(resolve(context.run_config, num_nodes))
    Server(num_nodes, config=config, grid=OrderedGrid(quick, _partitions(quick))).run()


def _run_on_lan(grid: Grid, config: ExperimentConfig, runtime: LanConfig) -> None:
    """Run with clients that come and go; `fedmoe.server` says where to write."""
    run_dir = os.environ.get(RUN_DIR)
    if run_dir:
        end_with_parent()
    again = bool(run_dir and os.environ.get(RESUME))
    if run_dir and again and goes_on(Path(run_dir), config.tracking.checkpoint_every):
        config = replace(config, resume=run_dir)
    by_key = _clients_by_key(Path(os.environ[NODES])) if run_dir else None
    roster = Roster(grid, resumed=config.resume is not None, by_key=by_key)
    server = Server(config=config, grid=roster)
    server.federation.began = again  # its records of rounds that are made once more are void
    if run_dir:
        server.directory = RunDirectory.reopen(Path(run_dir))
    logging.getLogger("fedmoe").setLevel(config.tracking.log_level)
    clients = server.experiment.data.num_clients
    try:
        roster.wait_for(runtime.min_clients, runtime.wait, clients)
    except RunError as error:
        if server.directory is not None:  # whoever watches it need not ask Flower then
            failed = {"name": config.name, "status": "failed", "reason": str(error)}
            server.directory.write_json("summary.json", failed)
        raise
    summary = server.run()
    roster.say_farewell(summary["status"])


def _clients_by_key(path: Path) -> dict[int, int] | None:
    """Which client each of Flower's nodes is, where the server knows their keys."""
    known = json.loads(path.read_text())
    return {int(node): client for node, client in known.items()} or None


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
