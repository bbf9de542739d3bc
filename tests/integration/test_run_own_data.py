"""A run on data of the user's own, made on demand, of which one client's cannot be made."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation_runs import lines, run

from fedmoe import data
from fedmoe.data.sources import custom

BAD = 2  # the client at fault
WORDS = [
    "data=custom", "data.factory=mine", "partition=natural", "model=linear", "training.epochs=1",
    "tracking.progress=none",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(custom.REGISTRY, "factories", {})

    @data.register("mine")
    def mine(seed: int) -> data.LazyDataset:
        def build(client: int) -> tuple[Any, Any]:
            if client == BAD:
                raise OSError("the sensor is broken")
            rng = np.random.default_rng([seed, client])
            return rng.standard_normal((20, 3)), rng.integers(2, size=20)

        task = data.Task(kind="classification", num_features=3, num_outputs=2)
        return data.LazyDataset(
            name="sensors", origin="real", task=task, num_clients=4, build=build
        )

    yield


def test_a_client_that_cannot_be_made_is_its_own_failure(tmp_path: Path) -> None:
    summary = run(WORDS, tmp_path / "run", "rounds=2")
    assert (summary["status"], summary["missing"]) == ("completed", 1)
    assert summary["data"] == {
        "name": "sensors", "origin": "real", "clients": 4, "samples": None,
    }  # fmt: skip
    told = lines(tmp_path / "run", "clients.jsonl")
    assert {r["client"] for r in told if r["status"] == "ok"} == {0, 1, 3}
    reasons = {json.dumps(r) for r in told if r["status"] != "ok" and r["client"] == BAD}
    assert len(reasons) == 2  # one a round
    assert all("sensors: client 2: OSError: the sensor is broken" in line for line in reasons)
    assert not (tmp_path / "run" / "partition.png").exists()
    assert (tmp_path / "run" / "learning.png").is_file()
