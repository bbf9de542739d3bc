import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation_runs import RUNS, all_lines, assert_same_checkpoint, lines, run

from fedmoe.clients import load_experiment


def generators() -> tuple[Any, ...]:
    """The states of all global generators."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    numpy = (kind, np.asarray(keys).tobytes(), *rest)
    return random.getstate(), numpy, torch.get_rng_state().numpy().tobytes()


@pytest.mark.parametrize("name", RUNS)
def test_the_same_seed_gives_the_same_run(name: str, tmp_path: Path) -> None:
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(3)
    before = generators()
    run(RUNS[name], tmp_path / "one", "rounds=3")
    assert generators() == before

    random.seed(4)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(6)
    load_experiment.cache_clear()  # made anew, as in another process
    run(RUNS[name], tmp_path / "two", "rounds=3")
    one, two = all_lines(tmp_path / "one"), all_lines(tmp_path / "two")
    assert one == two
    assert [record["round"] for record in one["metrics.jsonl"]] == [1, 2, 3]
    assert bool(one["insights.jsonl"]) == ("insight" in name)
    assert_same_checkpoint(tmp_path / "one", tmp_path / "two")

    run(RUNS[name], tmp_path / "three", "rounds=3", "seed=1")
    for file in ("metrics.jsonl", "clients.jsonl"):
        assert one[file] != lines(tmp_path / "three", file)


def test_runs_leave_what_they_share_as_it_was(tmp_path: Path) -> None:
    """The experiment is cached: a run that trained the initial weights would spoil the next."""
    words = RUNS["fedavg"]
    run(words, tmp_path / "one", "rounds=2")
    run(words, tmp_path / "two", "rounds=2")
    assert all_lines(tmp_path / "one") == all_lines(tmp_path / "two")


@pytest.mark.parametrize("name", ["kept-momentum", "kept-moments"])
def test_what_clients_keep_between_rounds_shows_from_the_second_on(
    name: str, tmp_path: Path
) -> None:
    everybody = "strategy.fraction_train=1.0"
    run(RUNS[name], tmp_path / "kept", "rounds=2", everybody)
    run(RUNS[name], tmp_path / "fresh", "rounds=2", everybody, "training.reset_optimizer=true")
    kept, fresh = (lines(tmp_path / which, "clients.jsonl") for which in ("kept", "fresh"))
    assert kept[:6] == fresh[:6]
    assert all(one["loss"] != other["loss"] for one, other in zip(kept[6:], fresh[6:], strict=True))
