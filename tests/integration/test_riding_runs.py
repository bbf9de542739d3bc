"""Evaluation that rides along leaves every number as it is, whatever the strategy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from desk_runs import DeskGrid, ServerDiedError, serve
from federation_runs import QUIET, all_lines, bits
from flwr.app import Message, MessageType

from fedmoe.config import load_config
from fedmoe.messages import words
from fedmoe.messages.sizes import content_bytes
from fedmoe.schema import ExperimentConfig, LanConfig
from fedmoe.tracking.checkpoint import Checkpoint, load_checkpoint

ALL = "strategy.fraction_train=1.0"
SMALL = [
    *QUIET, "data=synthetic_mixture", "data.num_clients=2", "data.samples_per_client=20",
    "data.num_features=4", "partition=natural", "training.batch_size=8", "model=linear",
]  # fmt: skip
MLP = [*SMALL, "model=mlp", "model.hidden=[5,3]"]
STOCK = [*MLP, "strategy=stock"]
ROUNDS = 3

# By name, words and the rounds whose evaluation can ride along; that of the last one never can.
CASES: dict[str, tuple[list[str], list[int]]] = {
    "local": ([*MLP, "strategy=local", "training.reset_optimizer=false"], [1, 2]),
    "fedavg": ([*SMALL, "strategy=fedavg"], [1, 2]),
    "fedavg-router": ([*SMALL, "model=moe", "model.hidden=[3]", "strategy=fedavg"], [1, 2]),
    "fedavg-guided": ([*MLP, "strategy=fedavg", "meta_learner=prototypes"], [1, 2]),
    "fedavg-policies": (
        [*SMALL, "strategy=fedavg", "meta_learner=[step_size,hyperparameters,selection]",
         "meta_learner.step_size.per=client", "meta_learner.hyperparameters.epochs=[1,3]"],
        [1, 2],
    ),
    "fedavg-selected": (
        [*SMALL, "strategy=fedavg", "meta_learner=selection", "strategy.fraction_train=0.5"], [],
    ),
    "fedavg-bias": (
        [*SMALL, "model=moe", "model.hidden=[3]", "model/router=loss_free", "strategy=fedavg",
         "meta_learner=expert_bias"],
        [1, 2],
    ),
    "fedavg-finetune": ([*SMALL, "strategy=fedavg_finetune"], [1, 2]),
    "fedprox": ([*SMALL, "strategy=fedprox", "strategy.proximal_mu=0.5"], [1, 2]),
    "fedadam": ([*SMALL, "strategy=fedadam"], [1, 2]),
    "fedyogi": ([*SMALL, "strategy=fedyogi"], [1, 2]),
    "fedadagrad": ([*SMALL, "strategy=fedadagrad"], [1, 2]),
    "reptile": ([*SMALL, "strategy=reptile"], [1, 2]),
    "fedem": ([*SMALL, "strategy=fedem"], [1, 2]),
    # Another start is due in round 2, and the better one goes on.
    "ifca": ([*SMALL, "strategy=ifca", "strategy.restarts=2", "strategy.restart_rounds=1"], [2]),
    "fedmoe": (  # the warm-up, the making of experts, and the strength's choice
        [*SMALL, "strategy=fedmoe", "strategy.warm_up_rounds=1", ALL], [1, 2],
    ),
    "fedmoe-some": (  # who has not held all experts has one on trial, in training alone
        [*SMALL, "strategy=fedmoe", "strategy.warm_up_rounds=0", ALL,
         "strategy.experts_per_client=3"],
        [2],
    ),
    "local-global": ([*MLP, "strategy=local_global", ALL], [1, 2]),
    "ditto": ([*SMALL, "strategy=ditto", "training.reset_optimizer=false", ALL], [1, 2]),
    "fedrep": ([*MLP, "strategy=fedrep", ALL], [1, 2]),
    "fedproto": ([*MLP, "strategy=fedproto", ALL], [1, 2]),
    "insight": ([*MLP, "strategy=insight", "insight.memory_rounds=2"], [1, 2]),
    "stock-momentum": (
        [*STOCK, "strategy.class_name=FedAvgM", "+strategy.options.server_momentum=0.9"],
        [1, 2],
    ),
    "stock-median-some": (
        [*STOCK, "strategy.class_name=FedMedian", "strategy.fraction_train=0.5"], [],
    ),
}  # fmt: skip


def config_of(words: list[str]) -> ExperimentConfig:
    return load_config([*words, "runtime=lan", f"rounds={ROUNDS}", "tracking.checkpoint_every=1"])


def ran(config: ExperimentConfig, folder: Path, *, along: bool = True) -> DeskGrid:
    assert isinstance(config.runtime, LanConfig)
    runtime = replace(config.runtime, evaluate_with_training=along)
    server, grid = serve(replace(config, runtime=runtime), folder)
    server.run()
    return grid


def without_bytes(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The run's lines but for what is to be less: bytes that were sent."""
    files = all_lines(path)
    for line in files["metrics.jsonl"]:
        line["bytes"].pop("down")
    for line in files["clients.jsonl"]:
        line.pop("bytes_down")
    return files


def riding(grid: DeskGrid) -> list[int]:
    """The rounds whose evaluation rode along."""
    settings = [m.content.config_records.get(words.EVALUATION) for m in grid.sent]
    return sorted({int(one[words.SERVER_ROUND]) for one in settings if one})  # type: ignore[arg-type]


def phases(grid: DeskGrid) -> set[tuple[str, int]]:
    """What was asked of clients in which round."""
    asked = [m for m in grid.sent if m.metadata.message_type != MessageType.QUERY]
    configs = [(m.metadata.message_type, m.content.config_records[words.CONFIG]) for m in asked]
    return {(kind, int(one[words.SERVER_ROUND])) for kind, one in configs}  # type: ignore[arg-type]


def what_stays(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """All but times and traffic, and what Flower's optimisers set anew before each training."""
    anew = "strategy/current_arrays"
    arrays = {n: bits(a).tobytes() for n, a in checkpoint.arrays.items() if not n.startswith(anew)}
    standing = dict(checkpoint.state["standing"])
    for name in ("seconds", "bytes_down"):
        del standing[name]
    return arrays, {**checkpoint.state, "standing": standing}


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_two_phases(case: str, tmp_path: Path) -> None:
    config, rode = config_of(CASES[case][0]), CASES[case][1]
    along, apart = tmp_path / "along", tmp_path / "apart"
    grid = ran(config, along)
    assert riding(grid) == rode
    everything = {(kind, n) for kind in ("train", "evaluate") for n in range(1, ROUNDS + 1)}
    assert phases(grid) == everything - {("evaluate", number) for number in rode}
    assert not riding(ran(config, apart, along=False))
    assert without_bytes(along / "run") == without_bytes(apart / "run")
    for before in (ROUNDS, ROUNDS + 1):  # the last but one was written with training under way
        one, other = (load_checkpoint(folder / "run", before) for folder in (along, apart))
        assert what_stays(one) == what_stays(other)


# ---------------------------------------------------------------------------- bytes and ends

STOPPED = [*SMALL, "strategy=fedavg", "stopping.patience=1", "stopping.min_delta=9.0"]


@pytest.mark.parametrize(("words", "rounds"), [(CASES["fedmoe"][0], ROUNDS), (STOPPED, 2)])
def test_bytes_are_those_of_what_travelled(words: list[str], rounds: int, tmp_path: Path) -> None:
    """Of training that is thrown away as well."""
    server, grid = serve(config_of(words), tmp_path)
    up = down = 0

    def weigh(message: Message, reply: Message) -> Message:
        nonlocal up, down
        up, down = up + content_bytes(reply.content), down + content_bytes(message.content)
        return reply

    grid.spoil = weigh
    summary = server.run()
    assert summary["rounds"] == rounds
    assert summary["bytes"] == {"up": up, "down": down}
    lines = all_lines(tmp_path / "run")
    for way in ("up", "down"):
        assert sum(line["bytes"][way] for line in lines["metrics.jsonl"]) == summary["bytes"][way]
    assert max(number for _, number in phases(grid)) == min(rounds + 1, ROUNDS)


def test_the_model_goes_down_once_a_round(tmp_path: Path) -> None:
    config = config_of([*MLP, "strategy=fedavg"])
    ran(config, tmp_path / "along")
    ran(config, tmp_path / "apart", along=False)
    along, apart = (
        [line["bytes"]["down"] for line in all_lines(tmp_path / name / "run")["metrics.jsonl"]]
        for name in ("along", "apart")
    )
    assert [one < 0.6 * two for one, two in zip(along, apart, strict=True)] == [True, True, False]


def test_an_early_stop_leaves_the_round_that_it_follows(tmp_path: Path) -> None:
    config = config_of(STOPPED)
    grid = ran(config, tmp_path / "along")
    assert riding(grid) == [1, 2]
    ran(config, tmp_path / "apart", along=False)
    one, other = (load_checkpoint(tmp_path / name / "run") for name in ("along", "apart"))
    assert one.round == other.round == 2
    assert what_stays(one)[0] == what_stays(other)[0]
    along, apart = (without_bytes(tmp_path / name / "run") for name in ("along", "apart"))
    thrown = along["metrics.jsonl"][-1].pop("bytes"), apart["metrics.jsonl"][-1].pop("bytes")
    assert thrown[0]["up"] > thrown[1]["up"]
    assert along == apart


@pytest.mark.parametrize("case", ["fedavg-router", "insight", "fedadam", "fedmoe"])
def test_a_killed_server_goes_on_to_the_same_numbers(case: str, tmp_path: Path) -> None:
    config, killed = config_of(CASES[case][0]), tmp_path / "killed"
    ran(config, tmp_path / "whole")
    server, grid = serve(config, killed)

    def die(message: Message, reply: Message) -> Message:
        """When one client has answered: it has gone on to round 3, and round 2 is not over."""
        if ("train", 3) in phases(grid):
            raise ServerDiedError
        return reply

    grid.spoil = die
    with pytest.raises(ServerDiedError):
        server.run()
    assert load_checkpoint(killed / "run").round == 1
    again, grid = serve(config, killed, resume=True)
    again.run()
    assert riding(grid) == [1, 2]  # the first round's once more: clients have gone back to it
    assert all_lines(killed / "run") == all_lines(tmp_path / "whole" / "run")
