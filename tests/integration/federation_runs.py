"""Small real runs for the tests of this folder."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from fedmoe import models, strategies
from fedmoe.config import load_config
from fedmoe.schema import ExperimentConfig
from fedmoe.simulations import run_experiment
from fedmoe.tracking import RunDirectory
from fedmoe.tracking.checkpoint import Checkpoint, load_checkpoint

QUIET = ["tracking.plots=false", "tracking.progress=none", "tracking.log_level=ERROR"]
REGRESSION = [
    *QUIET, "data=synthetic_linear", "data.num_clients=5", "data.samples_per_client=24",
    "data.num_features=3", "partition=natural", "model=linear", "training.learning_rate=0.02",
    "training.batch_size=8",
]  # fmt: skip
MIXTURE = [
    *QUIET, "data=synthetic_mixture", "data.num_clients=6", "data.samples_per_client=20",
    "data.num_features=4", "partition=natural", "training.batch_size=8",
]  # fmt: skip
CLASSES = [*MIXTURE, "model=mlp", "model.hidden=[5,3]"]

# One of each kind of state: none, server moments, client models, client optimisers, insights.
RUNS: dict[str, list[str]] = {
    "local": [*CLASSES, "strategy=local"],
    "fedavg": [*CLASSES, "strategy=fedavg"],
    "fedprox": [*CLASSES, "strategy=fedprox", "strategy.proximal_mu=0.5"],
    "fedadam": [*CLASSES, "strategy=fedadam"],
    "insight": [*REGRESSION, "strategy=insight"],
    "insight-prototypes": [*CLASSES, "strategy=insight", "insight.memory_rounds=2"],
    "guided-insights": [  # weights travel, and insights besides
        *CLASSES, "strategy=fedavg", "meta_learner=prototypes", "strategy.fraction_train=0.5",
        "insight.memory_rounds=2",
    ],
    "guided-adam-insights": [
        *CLASSES, "strategy=fedadam", "meta_learner=prototypes", "insight.payloads=[scalars]",
    ],
    "mixture-of-experts": [*MIXTURE, "model=moe", "model.hidden=[3]", "strategy=fedavg"],
    "fedem": [*MIXTURE, "model=linear", "strategy=fedem", "strategy.fraction_train=0.5"],
    "ifca": [  # cut and resumed in the middle of its trials, and after them
        *MIXTURE, "model=linear", "strategy=ifca", "strategy.restart_rounds=2",
        "strategy.restarts=2", "training.reset_optimizer=false",
    ],
    "ifca-trials": [
        *CLASSES, "strategy=ifca", "strategy.restarts=3", "strategy.restart_rounds=2",
        "strategy.fraction_train=0.5",
    ],
    "ifca-insights": [
        *CLASSES, "strategy=ifca", "strategy.restarts=3", "strategy.restart_rounds=1",
        "meta_learner=prototypes", "insight.memory_rounds=2",
    ],
    "local-global": [
        *CLASSES, "strategy=local_global", "strategy.fraction_train=0.5",
        "training.reset_optimizer=false",
    ],
    "fedmoe": [  # resumed after the warm-up, before the gate is trained
        *MIXTURE, "model=linear", "strategy=fedmoe", "strategy.warm_up_rounds=2",
        "strategy.gate_from=5", "training.reset_optimizer=false", "strategy.fraction_train=0.5",
    ],
    "fedmoe-some": [  # who holds which experts goes on, too
        *MIXTURE, "model=linear", "strategy=fedmoe", "strategy.warm_up_rounds=1",
        "strategy.experts_per_client=1", "strategy.fraction_train=0.5",
    ],
    "adam": [*CLASSES, "strategy=fedavg", "training=adam"],
    "kept-momentum": [*CLASSES, "strategy=fedavg", "training.reset_optimizer=false"],
    "kept-moments": [
        *CLASSES, "strategy=local", "training=adam", "training.reset_optimizer=false",
        "strategy.fraction_train=0.5",
    ],
    "sampled": [*CLASSES, "strategy=fedavg", "strategy.fraction_train=0.5"],
    "sampled-insight": [*REGRESSION, "strategy=insight", "strategy.fraction_train=0.5"],
    "insight-policies": [
        *CLASSES, "strategy=fedavg", "strategy.fraction_train=0.5",
        "meta_learner=[step_size,hyperparameters,selection]", "meta_learner.step_size.per=client",
        "meta_learner.hyperparameters.epochs=[1,3]",
    ],
    "insight-distillation": [
        *CLASSES, "strategy=insight", "meta_learner=distillation", "insight.every=2",
        "insight.public_samples=9", "meta_learner.distillation.samples=4",
        "strategy.fraction_train=0.7",
    ],
    "expert-bias-insights": [
        *MIXTURE, "model=moe", "model.hidden=[3]", "model/router=loss_free", "strategy=fedavg",
        "meta_learner=expert_bias", "strategy.fraction_train=0.5",
    ],
    "reptile": [*CLASSES, "strategy=reptile"],
    "fedavg-finetune": [*CLASSES, "strategy=fedavg_finetune"],
    "ditto": [
        *CLASSES, "strategy=ditto", "training.reset_optimizer=false", "strategy.fraction_train=0.5",
    ],
    "fedrep": [
        *CLASSES, "strategy=fedrep", "training=adam", "training.reset_optimizer=false",
        "strategy.fraction_train=0.5",
    ],
    "fedrep-linear": [*MIXTURE, "model=linear", "strategy=fedrep"],
    "fedproto": [*CLASSES, "strategy=fedproto", "strategy.fraction_train=0.5"],
    "stock-median": [
        *CLASSES, "strategy=stock", "strategy.class_name=FedMedian",
        "strategy.fraction_train=0.5",
    ],
    "stock-yogi": [*CLASSES, "strategy=stock", "strategy.class_name=FedYogi"],
    "stock-momentum": [
        *CLASSES, "strategy=stock", "strategy.class_name=FedAvgM",
        "+strategy.options.server_momentum=0.9",
    ],
}  # fmt: skip


def config_of(words: list[str], *more: str, resume: Path | None = None) -> ExperimentConfig:
    config = load_config([*words, *more])
    return dataclasses.replace(config, resume=None if resume is None else str(resume))


def run(words: list[str], path: Path, *more: str) -> dict[str, Any]:
    return run_experiment(config_of(words, *more), path)


def resume(words: list[str], path: Path, *more: str) -> dict[str, Any]:
    return run_experiment(config_of(words, *more, resume=path), path)


def lines(path: Path, file: str) -> list[dict[str, Any]]:
    """A file's records but for what differs from run to run."""
    records = RunDirectory(path).read_lines(file)
    for record in records:
        record.pop("seconds", None)
    return records


def all_lines(path: Path) -> dict[str, list[dict[str, Any]]]:
    return {file.name: lines(path, file.name) for file in sorted(path.glob("*.jsonl"))}


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """The newest checkpoints are equal bit for bit, in the order of their arrays too."""
    mine, theirs = load_checkpoint(one), load_checkpoint(other)
    assert mine.round == theirs.round
    assert list(mine.arrays) == list(theirs.arrays)
    for name, array in mine.arrays.items():
        np.testing.assert_array_equal(bits(array), bits(theirs.arrays[name]), err_msg=name)
        assert (array.dtype, array.shape) == (theirs.arrays[name].dtype, theirs.arrays[name].shape)
    assert without_seconds(mine) == without_seconds(theirs)


def bits(array: Any) -> Any:
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)


def without_seconds(checkpoint: Checkpoint) -> dict[str, Any]:
    standing = {k: v for k, v in checkpoint.state["standing"].items() if k != "seconds"}
    return {**checkpoint.state, "standing": standing}


def own_parts() -> Any:
    """The module `examples/own_parts.py`, imported without leaving its parts registered."""
    path = Path(__file__).parents[2] / "examples" / "own_parts.py"
    before = dict(models.REGISTRY.factories), dict(strategies.building.REGISTRY.factories)
    spec = importlib.util.spec_from_file_location("own_parts", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    models.REGISTRY.factories, strategies.building.REGISTRY.factories = before
    return module
