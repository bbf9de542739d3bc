"""Flower's own machinery round our app: `Strategy.start`, stock strategies, and `flwr run`."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import strategy as stock
from flwr.serverapp.strategy import Result, Strategy

from fedmoe.clients import Experiment, load_experiment
from fedmoe.clients.local import evaluate_clients
from fedmoe.clients.requests import EvaluateRequest
from fedmoe.clients.states import StackedStates
from fedmoe.config import load_config, to_json
from fedmoe.lan.superlink import free_port
from fedmoe.messages.arrays import from_record, to_record
from fedmoe.simulations import InProcessGrid, run_experiment
from fedmoe.strategies import build_strategy

REPOSITORY = Path(__file__).parents[2]
CLIENTS = 6
ROUNDS = 4
WORDS = [
    "data=digits", "partition=iid", f"partition.num_clients={CLIENTS}", "model=linear",
    "training=sgd", f"rounds={ROUNDS}",
]  # fmt: skip


def experiment_of(*words: str) -> Experiment:
    return load_experiment(to_json(load_config([*WORDS, *words])))


def start(experiment: Experiment, strategy: Strategy) -> Result:
    """Run a strategy as any Flower app does, on our grid."""

    def accuracy(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": global_accuracy(experiment, arrays)})

    grid = InProcessGrid(experiment)
    initial = to_record(experiment.initial)
    return strategy.start(grid, initial, num_rounds=ROUNDS, evaluate_fn=accuracy)


def global_accuracy(experiment: Experiment, arrays: ArrayRecord) -> float:
    clients = np.arange(experiment.data.num_clients)
    params = {name: tensor[None] for name, tensor in from_record(arrays).items()}
    request = EvaluateRequest(clients=clients, params=params)
    scores = evaluate_clients(experiment, request, StackedStates())["metrics"]
    assert isinstance(scores, dict)
    return float(scores["test-global-accuracy"].mean())


def accuracies(result: Result) -> list[float]:
    """Of the global model, before the first round and after each."""
    found = result.evaluate_metrics_serverapp
    return [float(record["accuracy"]) for _, record in sorted(found.items())]  # type: ignore[arg-type]


STOCK: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.2},
    "FedAdam": {"eta": 0.03},
    "Krum": {"num_malicious_nodes": 1},
}


@pytest.mark.parametrize("name", STOCK)
def test_stock_strategies_learn_on_our_grid(name: str) -> None:
    result = start(experiment_of(), getattr(stock, name)(**STOCK[name]))
    before, *_, after = accuracies(result)
    assert after > before + 0.3
    evaluated = result.evaluate_metrics_clientapp[ROUNDS]
    assert evaluated["test-global-accuracy"] == pytest.approx(after, abs=0.05)


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedadam"])
def test_our_averaging_strategies_learn_under_flowers_start(name: str) -> None:
    experiment = experiment_of(f"strategy={name}")
    before, *_, after = accuracies(start(experiment, strategy_of(experiment)))
    assert after > before + 0.3


@pytest.mark.parametrize("name", ["local", "insight"])
def test_strategies_without_a_global_model_learn_under_flowers_start(name: str) -> None:
    experiment = experiment_of(f"strategy={name}")
    result = start(experiment, strategy_of(experiment))
    assert not result.arrays  # no weights travelled
    first, last = (
        result.evaluate_metrics_clientapp[number]["test-personalised-accuracy"]
        for number in (1, ROUNDS)
    )
    initial = accuracies(result)[0]
    assert isinstance(first, float) and isinstance(last, float)
    assert initial + 0.3 < last > first


def test_our_fedavg_and_flowers_give_the_same_model() -> None:
    experiment = experiment_of("strategy=fedavg", "partition=dirichlet", "partition.num_clients=8")
    ours = start(experiment, strategy_of(experiment)).arrays
    theirs = start(experiment, stock.FedAvg()).arrays
    assert list(ours) == list(theirs) == list(experiment.initial)
    for name, array in ours.items():
        np.testing.assert_allclose(array.numpy(), theirs[name].numpy(), atol=1e-5)


def strategy_of(experiment: Experiment) -> Strategy:
    return build_strategy(experiment.config, experiment.data.task)


# ---------------------------------------------------------------------------- flwr run


def run_environment(home: Path) -> dict[str, str]:
    inherited = {key: v for key, v in os.environ.items() if not key.startswith("FED_MOE_")}
    return {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),  # not one of the user's
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(home),
    }


def processes_of(home: Path) -> dict[int, str]:
    """Processes that were started with this FLWR_HOME, by pid: theirs alone, it is fresh."""
    marker = f"FLWR_HOME={home}".encode()
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (directory / "environ").read_bytes().split(b"\0"):
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(directory.name)] = command.decode(errors="replace")
        except OSError:  # gone, or somebody else's
            continue
    return found


def wait_until_gone(home: Path, seconds: float) -> dict[int, str]:
    deadline = time.monotonic() + seconds
    while (left := processes_of(home)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def end(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


@pytest.fixture
def flower_home() -> Iterator[Path]:
    """A fresh FLWR_HOME; the SuperLink that `flwr run` leaves behind is stopped afterwards."""
    # Not `tmp_path`: Ray puts sockets there, whose paths must be short.
    home = Path(tempfile.mkdtemp(prefix="fedmoe-", dir="/tmp"))
    yield home
    links = [pid for pid, command in processes_of(home).items() if "flower-superlink" in command]
    end(links, signal.SIGTERM)
    left = wait_until_gone(home, 30.0)
    end(list(left), signal.SIGKILL)
    wait_until_gone(home, 5.0)
    shutil.rmtree(home)
    assert not left, f"left behind: {left}"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs fedmoe[ray]")
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to clean up")
def test_flwr_run_gives_what_our_own_simulation_gives(flower_home: Path, tmp_path: Path) -> None:
    words = [
        "+experiment=fedavg", "rounds=2", "model=linear", "strategy.fraction_train=0.5",
        "tracking.plots=false",
    ]  # fmt: skip
    overrides = " ".join([*words, "tracking.progress=lines"])
    done = subprocess.run(
        [
            "flwr", "run", str(REPOSITORY), "local", "--stream",
            "--federation-config",
            f"num-supernodes={CLIENTS} client-resources-num-cpus=1 init-args-num-cpus=1",
            "--run-config", f'overrides="{overrides}"',
        ],
        cwd=tmp_path, env=run_environment(flower_home), capture_output=True, text=True,
        timeout=180, check=False,
    )  # fmt: skip
    # Flower's exit status says nothing about the app: the run directory does.
    folders = list((tmp_path / "runs").glob("*/*-fedavg"))
    assert len(folders) == 1, done.stdout + done.stderr
    summary = json.loads((folders[0] / "summary.json").read_text())
    assert summary["status"] == "completed"

    config = load_config([*words, f"partition.num_clients={CLIENTS}", "tracking.progress=none"])
    ours = run_experiment(config, tmp_path / "ours")
    assert summary["bytes"] == ours["bytes"]
    theirs_lines, our_lines = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (folders[0], tmp_path / "ours")
    )
    for theirs, own in zip(theirs_lines, our_lines, strict=True):
        assert theirs["train"] == pytest.approx(own["train"])
        for name, values in own["test"]["global"].items():  # sums in another order
            assert theirs["test"]["global"][name] == pytest.approx(values, abs=1e-4)
