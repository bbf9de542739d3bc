"""The Flower ServerApp, for `flwr run` and SuperLinks: the same rounds on Flower's own grid."""

import time
from datetime import datetime
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmoe.app_config import resolve
from fedmoe.clients import load_experiment
from fedmoe.run import FederationRun
from fedmoe.tracking import RunDirectory, configure_logging, print_summary

app = ServerApp()

_WAIT_SECONDS = 60.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment on the nodes that are connected, and leave a run directory behind."""
    experiment = load_experiment(resolve(context, _count_nodes(grid)))
    config = experiment.config
    started = datetime.now()
    path = Path("runs") / f"{started:%Y-%m-%d}" / f"{started:%H-%M-%S}-{config.name}"
    with (
        RunDirectory.claim(path.absolute()) as directory,
        configure_logging(config.tracking, directory.path / "run.log"),
    ):
        # Clients are known by Flower's node ids here: partitions are their own business.
        run = FederationRun(experiment, grid, directory, client_of=int)
        print_summary(run.run(), directory.path)


def _count_nodes(grid: Grid) -> int:
    """Wait until the number of connected nodes has settled, and return it."""
    before, deadline = 0, time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        now = len(list(grid.get_node_ids()))
        if now and now == before:
            break
        before = now
        time.sleep(1.0)
    return max(before, 1)
