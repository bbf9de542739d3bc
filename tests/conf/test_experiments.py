import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedmoe import data, models, strategies
from fedmoe.data.federation import Task
from fedmoe.simulate import main
from fedmoe.tracking import RunDirectory

CONF = Path(strategies.__file__).parents[1] / "conf"
FILES = (
    "RUN", "clients.jsonl", "config.json", "insights.jsonl", "metrics.jsonl", "run.log",
    "summary.json",
)  # fmt: skip


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FED_MOE_")]:
        monkeypatch.delenv(name)


def simulate(*words: str, rounds: int = 1, plots: bool = False) -> Path:
    """Run a command line; the run directory, after a look at what must be in any."""
    path = Path("run").absolute()
    quiet = [f"tracking.plots={str(plots).lower()}", "tracking.progress=none"]
    assert main([*words, *quiet, f"rounds={rounds}", f"hydra.run.dir={path}"]) == 0
    assert {file for file in FILES if (path / file).is_file()} == set(FILES)
    assert (path / "checkpoints" / f"round-{rounds:05d}.safetensors").is_file()
    whole = summary(path)
    assert (whole["status"], whole["rounds"]) == ("completed", rounds)
    assert len(lines(path, "metrics.jsonl")) == rounds
    assert np.isfinite(final(path))
    assert all(line["status"] == "ok" for line in lines(path, "clients.jsonl"))
    return path


def summary(path: Path) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return whole


def final(path: Path) -> float:
    """The mean accuracy, or mse, of the personalised model, or of the only one."""
    *_, scores = (scores for scores in summary(path)["final"].values() if scores is not None)
    measure = "accuracy" if "accuracy" in scores else "mse"
    return float(scores[measure]["mean"])


def lines(path: Path, file: str) -> list[dict[str, Any]]:
    return RunDirectory(path).read_lines(file)


# ------------------------------------------------------------------------- experiments


EXPERIMENTS = [*options("experiment"), *(f"regimes/{one}" for one in options("experiment/regimes"))]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(experiment: str) -> None:
    path = simulate(f"+experiment={experiment}", "training.epochs=1")
    assert not list(path.glob("*.png"))
    config = json.loads((path / "config.json").read_text())
    assert config["training"]["epochs"] == 1
    assert (final(path) <= 1.0) or config["data"]["name"] in ("synthetic_linear", "flights")


def test_an_experiment_with_plots() -> None:
    path = simulate("+experiment=insight", rounds=2, plots=True)
    assert {png.name for png in path.glob("*.png")} == {"partition.png", "learning.png"}
    for png in path.glob("*.png"):
        assert png.read_bytes().startswith(b"\x89PNG")


def mse_by_round(path: Path, model: str) -> list[float]:
    return [r["test"][model]["mse"]["mean"] for r in lines(path, "metrics.jsonl")]


def test_stage_2_of_scarcity_learns_in_each_of_its_five_rounds() -> None:
    path = simulate("+experiment=scarcity", rounds=5)
    errors = mse_by_round(path, "global")
    assert len(errors) == 5
    assert all(later < earlier for earlier, later in pairwise(errors))
    told = [(line["round"], line["client"]) for line in lines(path, "clients.jsonl")]
    assert told == [(r, c) for r in range(1, 6) for c in range(5)]
    assert lines(path, "insights.jsonl") == []


def test_stage_3_of_scarcity_gathers_25_insights_and_no_weights() -> None:
    path = simulate("+experiment=scarcity", "strategy=insight", rounds=5)
    insights = lines(path, "insights.jsonl")
    told = [(one["round"], one["client_id"]) for one in insights]
    assert told == [(r, c) for r in range(1, 6) for c in range(5)]
    findings = lines(path, "findings.jsonl")
    assert [one["insights"] for one in findings] == [5] * 5
    assert all(
        set(one["high_uncertainty"] + one["low_uncertainty"]) == set(range(5)) for one in findings
    )
    errors = mse_by_round(path, "personalised")
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert summary(path)["final"]["global"] is None


# ------------------------------------------------------------------- every option of a group

SMALL = [
    "data=synthetic_mixture", "data.num_clients=4", "data.samples_per_client=30",
    "data.num_features=4", "training.epochs=1",
]  # fmt: skip


@strategies.register("conf-test-strategy")
def my_strategy(**options: Any) -> Strategy:
    return strategies.FedAvg(**options)


@models.register("conf-test-model")
def my_model(task: Task, *, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(task.num_features, width), nn.Tanh(), nn.Linear(width, task.num_outputs)
    )


STRATEGIES: dict[str, Sequence[str]] = {
    "custom": ["strategy.factory=conf-test-strategy"],
    "stock": ["strategy.class_name=FedTrimmedAvg"],
}
MODELS: dict[str, Sequence[str]] = {
    "custom": ["model.factory=conf-test-model", "+model.options.width=3"]
}
DIGITS = ["data=digits", "model=linear", "training.epochs=1"]
# These want images, and more than two classes.
PARTITIONS: dict[str, Sequence[str]] = {"rotation": DIGITS, "label_permutation": DIGITS}
# Groups with a test of their own; the one runtime so far is in all of them.
ELSEWHERE = {"experiment", "strategy", "partition", "model", "data", "runtime"}


@pytest.mark.parametrize("option", options("strategy"))
def test_every_strategy_runs(option: str) -> None:
    more = STRATEGIES.get(option, ())
    simulate(*SMALL, "partition=natural", "model=linear", f"strategy={option}", *more)


@pytest.mark.parametrize("option", options("model"))
def test_every_model_runs(option: str) -> None:
    simulate(*SMALL, "partition=natural", f"model={option}", *MODELS.get(option, ()))


@pytest.mark.parametrize("option", options("partition"))
def test_every_partition_runs(option: str) -> None:
    words = PARTITIONS.get(option, [*SMALL, "model=linear"])
    own = [] if option == "natural" else ["partition.num_clients=4", "partition.min_samples=2"]
    path = simulate(*words, f"partition={option}", *own)
    assert len(lines(path, "clients.jsonl")) == 4


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group.name, option)
        for group in sorted(CONF.iterdir())
        if group.is_dir() and group.name not in ELSEWHERE
        for option in options(group.name)
    ],
)
def test_every_option_of_the_other_groups_runs(group: str, option: str) -> None:
    model = ["model=moe", "model/router=loss_free"] if option == "expert_bias" else ["model=linear"]
    simulate(*SMALL, "partition=natural", *model, "strategy=insight", f"{group}={option}")


@data.register("conf-test-data")
def my_data(*, seed: int, samples: int) -> data.Dataset:
    rng = np.random.default_rng(seed)
    return data.Dataset(
        name="mine",
        origin="synthetic",
        task=Task(kind="regression", num_features=2, num_outputs=1),
        x_ND=rng.standard_normal((samples, 2), dtype=np.float32),
        y_N=rng.standard_normal((samples, 1), dtype=np.float32),
    )


IID = ["partition=iid", "partition.num_clients=3", "partition.min_samples=2"]
DATA: dict[str, Sequence[str]] = {
    "table": [*IID, "data.path=own.csv", "data.target=y"],
    "flights": [*IID, "data.max_per_client=50"],
    "custom": [*IID, "data.factory=conf-test-data", "data.options.samples=40"],
    "synthetic_classes": ["partition=natural", "data.num_clients=3"],
}


@pytest.mark.parametrize("option", options("data"))
def test_every_data_source_runs(option: str) -> None:
    rows = "".join(f"{i % 7},{i % 5},{i % 7 + 2 * (i % 5)}\n" for i in range(60))
    Path("own.csv").write_text("a,b,y\n" + rows)
    simulate(f"data={option}", *DATA.get(option, IID), "model=linear", "training.epochs=1")


def test_of_many_clients_that_are_made_on_demand_only_some_are() -> None:
    path = simulate(
        "data=synthetic_classes", "partition=natural", "data.num_clients=300", "model=linear",
        "data.samples_per_client=20", "data.num_features=5", "strategy.fraction_train=0.02",
        plots=True,
    )  # fmt: skip
    assert len([line for line in lines(path, "clients.jsonl") if line["num_examples"]]) == 6
    assert (path / "partition.png").is_file()
    assert summary(path)["data"] == {
        "name": "synthetic_classes", "origin": "synthetic", "clients": 300, "samples": 6000,
    }  # fmt: skip
