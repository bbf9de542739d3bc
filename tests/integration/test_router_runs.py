"""What a run with a router leaves behind, and that nobody is disturbed by what clients tell."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation_runs import MIXTURE, RUNS, lines, resume, run
from torch import Tensor, nn

from fedmoe import models
from fedmoe.models import ModelOutput
from fedmoe.models.routing import softmax_top_k
from fedmoe.report import main

MOE = [*MIXTURE, "model=moe", "model.hidden=[3]"]
EXPERTS = 4


def summary(path: Path) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return whole


def test_every_evaluated_round_is_written_and_the_last_one_summed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    run([*MOE, "strategy=fedavg"], path, "rounds=5", "evaluate_every=2", "tracking.plots=true")
    written = lines(path, "routing.jsonl")
    assert [line["round"] for line in written] == [2, 4, 5]
    assert [line["churn"] is None for line in written] == [True, False, False]
    assert all(len(line["load"]) == EXPERTS for line in written)
    assert summary(path)["routing"] == written[-1]
    clients = json.loads((path / "routing_clients.json").read_text())
    assert (clients["round"], clients["clients"]) == (5, list(range(6)))
    np.testing.assert_allclose(np.sum(clients["shares"], axis=1), 1.0, atol=1e-3)
    assert (path / "routing.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main([str(path)]) == 0
    alive = EXPERTS - written[-1]["dead_experts"]
    assert f"router   {alive} of {EXPERTS} experts alive, entropy of" in capsys.readouterr().out


def test_experts_stay_alive_by_default(tmp_path: Path) -> None:
    """The table of docs/router-metrics.md has more seeds and partitions."""
    skewed = [
        "+experiment=fedavg", "model=moe", "partition.alpha=0.5", "tracking.plots=false",
        "tracking.progress=none", "tracking.log_level=ERROR", "rounds=30", "evaluate_every=30",
    ]  # fmt: skip
    for seed in (0, 1):
        run(skewed, tmp_path / str(seed), f"seed={seed}")
        run(skewed, tmp_path / f"{seed}-without", f"seed={seed}", "model.losses.importance=0")
        assert summary(tmp_path / str(seed))["routing"]["dead_experts"] <= 1
        assert summary(tmp_path / f"{seed}-without")["routing"]["dead_experts"] >= 2


@pytest.mark.parametrize("words", [RUNS["fedavg"], RUNS["insight"]])
def test_a_run_without_a_router_says_nothing_of_one(words: list[str], tmp_path: Path) -> None:
    run(words, tmp_path, "rounds=1", "tracking.plots=true")
    assert "routing" not in summary(tmp_path)
    assert not list(tmp_path.glob("routing*"))


@pytest.mark.parametrize(
    "strategy", ["local", "fedprox", "fedadam", "insight", "FedAvg", "FedMedian", "FedYogi"]
)
def test_no_strategy_is_disturbed(
    strategy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Flower's own count the metric records of a reply, and not its arrays, at evaluation."""
    chosen = [f"strategy={strategy}"]
    if strategy.startswith("F"):
        chosen = ["strategy=stock", f"strategy.class_name={strategy}"]
    with caplog.at_level(logging.WARNING, "fedmoe"):
        run([*MOE, *chosen], tmp_path, "rounds=2", "tracking.log_level=WARNING")
    assert not caplog.records
    assert [line["round"] for line in lines(tmp_path, "routing.jsonl")] == [1, 2]
    assert summary(tmp_path)["missing"] == 0


def test_a_resumed_run_compares_with_the_round_before(tmp_path: Path) -> None:
    run([*MOE, "strategy=fedavg"], tmp_path / "whole", "rounds=4")
    run([*MOE, "strategy=fedavg"], tmp_path / "parts", "rounds=2")
    resume([*MOE, "strategy=fedavg"], tmp_path / "parts", "rounds=4")
    written = lines(tmp_path / "parts", "routing.jsonl")
    assert written == lines(tmp_path / "whole", "routing.jsonl")
    assert written[2]["churn"] is not None
    # Nothing to do: what was told of the last round stays.
    resume([*MOE, "strategy=fedavg"], tmp_path / "parts", "rounds=4")
    assert summary(tmp_path / "parts")["routing"] == written[-1]


class TwoLines(nn.Module):
    """A user's mixture: says who answered, and what each of the two experts said."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.gate = nn.Linear(features, 2)
        self.experts = nn.ModuleList(nn.Linear(features, outputs) for _ in range(2))

    def forward(self, x: Tensor) -> ModelOutput:
        routing = softmax_top_k(self.gate(x).mT, 2)
        answers = torch.stack([expert(x).mT for expert in self.experts])
        y = (answers * routing.weight.unsqueeze(-2)).sum(dim=-3).mT
        return ModelOutput(y, x, routing, answers)


def test_a_model_of_ones_own_may_say_what_its_router_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.REGISTRY, "factories", dict(models.REGISTRY.factories))
    models.register("two_lines")(lambda task: TwoLines(task.num_features, task.num_outputs))
    words = [*MIXTURE, "model=custom", "model.factory=two_lines"]
    for strategy in ("fedavg", "local"):
        run([*words, f"strategy={strategy}"], tmp_path / strategy, "rounds=2")
        last = lines(tmp_path / strategy, "routing.jsonl")[-1]
        assert len(last["importance"]) == 2
        assert last["load"] == [0.5, 0.5]  # both answer for each sample
        assert last["churn"] is not None
        assert last["necessity"] is not None
