"""Real data under label skew: a model of one's own beats the one for all, and training alone."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord

from fedmoe.clients import load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.messages.replies import Replies
from fedmoe.simulations import InProcessGrid, run_experiment
from fedmoe.strategies import FedProto, build_strategy

QUIET = ["tracking.plots=false", "tracking.progress=none", "tracking.log_level=ERROR"]
WORDS = [*QUIET, "rounds=15", "evaluate_every=15"]
SEEDS = (0, 1)


@cache
def final(strategy: str, alpha: float, seed: int) -> dict[str, Any]:
    words = [*WORDS, f"strategy={strategy}", f"partition.alpha={alpha}", f"seed={seed}"]
    with TemporaryDirectory() as folder:
        scores: dict[str, Any] = run_experiment(load_config(words), Path(folder))["final"]
    return scores


def accuracy(strategy: str, which: str, alpha: float, seed: int) -> float:
    return float(final(strategy, alpha, seed)[which]["accuracy"]["mean"])


@pytest.mark.parametrize("strategy", ["fedavg_finetune", "ditto", "fedrep", "fedproto"])
def test_under_strong_skew_each_beats_fedavgs_global_model(strategy: str) -> None:
    for seed in SEEDS:
        theirs = accuracy("fedavg", "global", 0.05, seed)
        assert accuracy(strategy, "personalised", 0.05, seed) > theirs + 0.03


@pytest.mark.parametrize("strategy", ["fedavg_finetune", "ditto", "fedrep"])
def test_under_mild_skew_what_shares_weights_beats_training_alone(strategy: str) -> None:
    """FedProto does not: see `docs/strategies.md`."""
    for seed in SEEDS:
        alone = accuracy("local", "personalised", 0.3, seed)
        assert accuracy(strategy, "personalised", 0.3, seed) > alone + 0.015


@pytest.mark.parametrize("strategy", ["fedavg_finetune", "ditto"])
def test_the_global_model_beside_it_is_fedavgs(strategy: str) -> None:
    found = final(strategy, 0.3, 0)["global"]
    assert found == final("fedavg", 0.3, 0)["global"]


def spread(strength: float) -> float:
    """How far clients' prototypes lie from those of all, in shares of the prototypes' variance."""
    words = ["strategy=fedproto", f"strategy.prototype_lambda={strength}"]
    config = load_config(words)
    experiment = load_experiment(to_json(config))
    grid, strategy = InProcessGrid(experiment), build_strategy(config, experiment.data.task)
    assert isinstance(strategy, FedProto)
    for round in range(1, 11):
        sent = strategy.configure_train(round, ArrayRecord(), ConfigRecord(), grid)
        replies = grid.send_and_receive(sent)
        strategy.aggregate_train(round, replies)
    assert isinstance(replies, Replies)
    told = replies.arrays("prototypes")
    has_KO = told["count"] > 0
    own_KOF = told["sum"] / told["count"].clamp_min(1).unsqueeze(2)
    away = (own_KOF - strategy.mean_OF).square().mean(dim=2)[has_KO].mean()
    return float(away / strategy.mean_OF.var(dim=0).mean())


def test_prototypes_draw_the_clients_representations_together() -> None:
    alone, drawn = spread(0.0), spread(3.0)
    assert np.isfinite(alone)
    assert drawn < 0.7 * alone
