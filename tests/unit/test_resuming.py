"""What a run that is resumed keeps of its configuration, and what may change."""

from pathlib import Path

import pytest

from fedmoe.config import load_config, to_json
from fedmoe.configuration.resuming import resumed_config
from fedmoe.configuration.words import Word
from fedmoe.errors import ConfigError
from fedmoe.schema import ExperimentConfig, LanConfig, RayConfig

OWN = ["runtime=lan", "runtime.min_clients=3", "runtime.port=9000", "strategy=local", "rounds=4"]


def resumed(folder: Path, *words: str) -> ExperimentConfig:
    """As `fedmoe.server resume=FOLDER WORDS` has it."""
    (folder / "config.json").write_text(to_json(load_config(OWN)))
    typed = load_config([*words, f"resume={folder}"])
    return resumed_config(typed, [Word(word, word) for word in words])


def test_the_same_runtime_stays_as_it_was(tmp_path: Path) -> None:
    runtime = resumed(tmp_path, "runtime=lan", "runtime.port=9001").runtime
    assert isinstance(runtime, LanConfig)
    assert (runtime.min_clients, runtime.port) == (3, 9001)


def test_another_runtime_comes_whole(tmp_path: Path) -> None:
    runtime = resumed(tmp_path, "runtime=ray", "runtime.min_replies=2").runtime
    assert isinstance(runtime, RayConfig) and runtime.min_replies == 2


def test_what_makes_another_experiment_of_it_is_refused(tmp_path: Path) -> None:
    assert resumed(tmp_path, "strategy=local", "rounds=9").rounds == 9
    with pytest.raises(ConfigError, match=r"strategy=fedavg: cannot change when a run is resumed"):
        resumed(tmp_path, "strategy=fedavg")
