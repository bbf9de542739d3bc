"""Mixtures change results where they are made for it: small runs against the baselines."""

from pathlib import Path
from typing import Any

import pytest
from federation_runs import QUIET, run

# Clients that follow nearly one of three rules each, with too few samples to learn it alone.
CLUSTERED = [
    *QUIET, "data=synthetic_mixture", "data.num_clients=30", "data.samples_per_client=60",
    "data.num_features=20", "data.alpha=0.05", "partition=natural", "model=linear",
    "training.momentum=0", "training.learning_rate=0.3", "rounds=40", "evaluate_every=40",
]  # fmt: skip
# Clients with a few of ten classes each.
SKEWED = [
    *QUIET, "data=digits", "partition=dirichlet", "partition.alpha=0.2", "model.hidden=[32]",
    "rounds=10", "evaluate_every=10",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def accuracy(words: list[str], strategy: str, folder: Path) -> float:
    """Test accuracy of the clients' own models, or of the only one; mean of two seeds."""
    found = list[float]()
    for seed in (0, 1):
        path = folder / f"{strategy.replace(' ', '+')}-{len(words)}-{seed}"
        final: Any = run([*words, *f"strategy={strategy}".split()], path, f"seed={seed}")["final"]
        found.append((final["personalised"] or final["global"])["accuracy"]["mean"])
    return sum(found) / len(found)


def test_clusters_and_components_find_the_rule_that_a_client_follows(folder: Path) -> None:
    fedavg = accuracy(CLUSTERED, "fedavg", folder)
    alone = accuracy(CLUSTERED, "local", folder)
    fedem = accuracy(CLUSTERED, "fedem strategy.num_components=3", folder)
    ifca = accuracy(CLUSTERED, "ifca strategy.num_clusters=3", folder)
    assert fedem > fedavg + 0.08
    assert fedem > alone + 0.01
    assert ifca > max(fedavg, alone) + 0.07


def test_restarts_find_a_better_start(folder: Path) -> None:
    """One start alone may leave two rules to one model."""
    one = "ifca strategy.num_clusters=3 strategy.restarts=1"
    assert accuracy(CLUSTERED, "ifca strategy.num_clusters=3", folder / "again") > accuracy(
        CLUSTERED, one, folder
    )


def test_a_local_expert_helps_where_labels_are_skewed(folder: Path) -> None:
    """And the global one helps clients that have too few samples to train alone."""
    both = accuracy(SKEWED, "local_global", folder)
    assert both > accuracy(SKEWED, "fedavg", folder) + 0.02
    assert both > accuracy(SKEWED, "local", folder) + 0.02
