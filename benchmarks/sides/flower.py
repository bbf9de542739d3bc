"""Flower's own simulation on Ray: python -m benchmarks.sides.flower WORK.

Stock FedAvg and a textbook client, message API, as Flower's quickstart has them.
"""

import logging
import os
import sys
import tempfile
import warnings
from importlib.util import find_spec
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.child import Parent, play
from benchmarks.sides.flower_client import client_app, read_work


class Rounds:
    """A round as `FedAvg.start` has it."""

    def __init__(self, path: str, grid: Grid) -> None:
        self.path, self.grid, self.work = path, grid, read_work(path)
        everyone = len(self.work.rows)
        self.strategy = FedAvg(
            fraction_train=self.work.sampled / everyone,
            fraction_evaluate=0.0,
            min_available_nodes=everyone,
        )
        self.arrays = ArrayRecord(self.work.module().state_dict())
        self.round = 0

    def one_round(self) -> None:
        """Configure, send, receive, aggregate."""
        self.round += 1
        config = ConfigRecord({"work": self.path})
        messages = self.strategy.configure_train(self.round, self.arrays, config, self.grid)
        replies = list(self.grid.send_and_receive(messages, timeout=600.0))
        if any(reply.has_error() for reply in replies):
            raise RuntimeError("a client failed on Flower's simulation")
        averaged, _ = self.strategy.aggregate_train(self.round, replies)
        if averaged is None:
            raise RuntimeError("Flower's strategy made nothing of the replies")
        self.arrays = averaged

    def loss(self) -> float:
        """Of the global model."""
        module = self.work.module()
        module.load_state_dict(self.arrays.to_torch_state_dict())
        return self.work.loss(module)


def main() -> None:
    """Play rounds inside the server app of a simulation."""
    parent, path = Parent(), sys.argv[1]
    if find_spec("ray") is None:
        parent.say(refused="needs Ray: pip install 'fedmoe[ray]'")
        return
    from flwr.simulation import run_simulation

    warnings.simplefilter("ignore")  # run_simulation is deprecated, and works
    logging.getLogger("flwr").setLevel(logging.ERROR)  # two lines per round
    server_app = ServerApp()

    @server_app.main()
    def run(grid: Grid, context: Context) -> None:
        del context
        rounds = Rounds(path, grid)
        play(parent, rounds.one_round, rounds.loss)

    backend: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    with tempfile.TemporaryDirectory(prefix="fedmoe-benchmark-") as home:
        os.environ["FLWR_HOME"] = home
        run_simulation(server_app, client_app, len(read_work(path).rows), backend_config=backend)


if __name__ == "__main__":
    main()
