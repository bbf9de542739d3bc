"""How long a round takes: ours, a loop over `NumPyClient.fit`, and Flower's own simulation.

    python benchmarks/speed.py [--clients 100] [--repeats 7] [--models linear mlp moe] [--no-flower]

Every side trains the same clients on the same data (digits, Dirichlet 0.5, batch 32, one local
epoch, SGD) and averages their weights:

- ours: the whole in-process path of a round: strategy, grid, guard, aggregation, records;
- loop: `FedMoEClient.fit`, client after client, and a plain NumPy average;
- torch: the same loop over a textbook client (`nn.Module`, `torch.optim.SGD`, no balance loss);
- flower: stock FedAvg and our client app on Flower's own Ray simulation (`fedmoe[ray]`).

The sides take turns, one round each: ratios of medians hold where a shared machine's times do
not. One intra-op thread per process.
"""

import argparse
import copy
import importlib.util
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import median
from typing import Any

os.environ |= {  # Flower and Ray phone home by default
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or Ray warns
}

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import NDArrays, Scalar
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as stock
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from fedmoe.clients import Experiment, FedMoEClient, load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.data import pooled
from fedmoe.messages.arrays import to_record
from fedmoe.models.base import as_output
from fedmoe.rounds import RoundLoop, RoundRecord
from fedmoe.simulations import InProcessGrid
from fedmoe.standing import Standing
from fedmoe.strategies import build_strategy

MODELS = ("linear", "mlp", "moe")
WARM_UP = 2
ENDLESS = 1_000_000

Round = Callable[[], None]
Seconds = dict[str, list[float]]


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Time a round of federated averaging.")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7, help="measured rounds of each side")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument(
        "--flower", action=argparse.BooleanOptionalAction, default=True,
        help="Flower's Ray simulation as well",
    )  # fmt: skip
    options = parser.parse_args(words)
    console = Console()
    with_flower = options.flower and importlib.util.find_spec("ray") is not None
    if options.flower and not with_flower:
        console.print("Flower's simulation is left out: pip install 'fedmoe[ray]'", markup=False)
    torch.set_num_threads(1)
    seconds = {}
    for model in options.models:
        experiment = experiment_for(model, options.clients)
        if with_flower:
            seconds[model] = measure_with_flower(experiment, options.repeats)
        else:
            seconds[model] = take_turns(sides_here(experiment), options.repeats)
    console.print(as_table(seconds, options.clients))


def experiment_for(model: str, clients: int) -> Experiment:
    """The work that every side does."""
    words = (
        f"data=digits partition=dirichlet partition.alpha=0.5 partition.num_clients={clients} "
        f"partition.min_samples=3 model={model} strategy=fedavg training=sgd training.epochs=1 "
        "training.batch_size=32 training.learning_rate=0.05 training.momentum=0 "
        f"training.num_threads=1 rounds={ENDLESS}"
    )
    return load_experiment(to_json(load_config(words.split())))


class RoundIsOver(Exception):  # noqa: N818 - it is none
    """Leaves the endless round loop after one round."""


def ours(experiment: Experiment, evaluate_every: int) -> Round:
    """A round of `RoundLoop` on the in-process grid."""
    config = replace(experiment.config, evaluate_every=evaluate_every)

    def on_round(record: RoundRecord) -> None:
        if record.metrics["train"]["failures"]:
            raise RuntimeError("a client failed")
        raise RoundIsOver

    grid = InProcessGrid(experiment)
    loop = RoundLoop(
        config=config,
        strategy=build_strategy(config, experiment.data.task),
        grid=grid,
        standing=Standing(to_record(experiment.initial)),
        client_of=grid.client_id,
        on_round=on_round,
    )

    def one_round() -> None:
        with suppress(RoundIsOver):
            loop.run()

    return one_round


def looped(clients: Sequence[NumPyClient], initial: NDArrays) -> Round:
    """`fit` client after client, and the average weighted by examples."""
    weights, number = initial, 0

    def one_round() -> None:
        nonlocal weights, number
        number += 1
        results = [client.fit(weights, {"server-round": number}) for client in clients]
        share = np.array([count for _, count, _ in results], dtype=np.float32)
        share /= share.sum()
        columns = zip(*(arrays for arrays, _, _ in results), strict=True)
        weights = [np.tensordot(share, np.stack(column), axes=1) for column in columns]

    return one_round


class TextbookClient(NumPyClient):
    """What a tutorial would write: load the weights, one epoch of SGD, return the weights."""

    def __init__(self, experiment: Experiment, client: int) -> None:
        rows, _ = pooled(experiment.data).parts["train"].padded(np.array([client]))
        self.x, self.y = experiment.pool.x_ND[rows[0]], experiment.pool.y_N[rows[0]]
        self.model = copy.deepcopy(experiment.model)
        self.config = experiment.config.training

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """One local epoch; `config` is not read."""
        del config
        with torch.no_grad():
            for parameter, value in zip(self.model.parameters(), parameters, strict=True):
                parameter.copy_(torch.from_numpy(value))
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.config.learning_rate)
        for batch in torch.split(torch.randperm(len(self.y)), self.config.batch_size):
            optimizer.zero_grad()
            loss = functional.cross_entropy(as_output(self.model(self.x[batch])).y, self.y[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        # Copies, since a module that is trained in place keeps its memory.
        arrays = [p.detach().numpy().copy() for p in self.model.parameters()]
        return arrays, len(self.y), {"loss": float(loss.detach())}


def flowers(experiment: Experiment, grid: Grid) -> Round:
    """Stock FedAvg over Flower's grid, as its own `start` goes through a round."""
    everyone = experiment.data.num_clients
    strategy = stock.FedAvg(fraction_evaluate=0.0, min_available_nodes=everyone)
    arrays: ArrayRecord = to_record(experiment.initial)
    number = 0

    def one_round() -> None:
        nonlocal arrays, number
        number += 1
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        replies = list(grid.send_and_receive(messages, timeout=600.0))
        averaged, _ = strategy.aggregate_train(number, replies)
        if averaged is None or any(reply.has_error() for reply in replies):
            raise RuntimeError("a client failed on Flower's simulation")
        arrays = averaged

    return one_round


def sides_here(experiment: Experiment) -> dict[str, Round]:
    """The sides that need nothing but this process."""
    initial = [value.numpy() for value in experiment.initial.values()]
    everyone = range(experiment.data.num_clients)
    return {
        "ours": ours(experiment, ENDLESS),
        "ours + evaluation": ours(experiment, 1),
        "loop": looped([FedMoEClient(experiment, c) for c in everyone], initial),
        "torch": looped([TextbookClient(experiment, c) for c in everyone], initial),
    }


def measure_with_flower(experiment: Experiment, repeats: int) -> Seconds:
    """All sides in turn, from inside the server app of a simulation of Flower's."""
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)  # deprecated, and two lines per round
    server, client, seconds = ServerApp(), ClientApp(), Seconds()
    run_config: dict[str, Any] = {"config": to_json(experiment.config), "overrides": ""}
    backend: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        del context
        sides = {**sides_here(experiment), "flower": flowers(experiment, grid)}
        seconds.update(take_turns(sides, repeats))

    @client.train()
    def train(message: Message, context: Context) -> Message:
        from fedmoe.client_app import train as answer_train

        return answer_train(message, replace(context, run_config=run_config))

    with tempfile.TemporaryDirectory(prefix="fedmoe-benchmark-") as home:
        os.environ["FLWR_HOME"] = home
        run_simulation(server, client, experiment.data.num_clients, backend_config=backend)
    return seconds


def take_turns(sides: dict[str, Round], repeats: int) -> Seconds:
    """Seconds of each side's rounds, the sides interleaved, after a warm-up."""
    seconds: Seconds = {name: [] for name in sides}
    for turn in range(WARM_UP + repeats):
        for name, one_round in sides.items():
            started = time.perf_counter()
            one_round()
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def as_table(measured: dict[str, Seconds], clients: int) -> Table:
    """Ratios first, then medians of milliseconds per round and of clients per second."""
    middle = {
        model: {side: median(values) for side, values in seconds.items()}
        for model, seconds in measured.items()
    }
    sides = list(next(iter(middle.values())))
    table = Table(title=f"{clients} of {clients} clients, digits, batch 32, one local epoch")
    table.add_column("medians")
    for model in middle:
        table.add_column(model, justify="right")
    for side in sides:
        if not side.startswith("ours"):
            ratios = [f"{times[side] / times['ours']:.1f}" for times in middle.values()]
            table.add_row(f"{side} / ours", *ratios)
    table.add_section()
    for side in sides:
        table.add_row(f"{side}, ms", *[f"{1000 * times[side]:.1f}" for times in middle.values()])
    table.add_section()
    rates = [f"{clients / times['ours']:,.0f}" for times in middle.values()]
    table.add_row("ours, client updates per second", *rates)
    return table


if __name__ == "__main__":
    main()
