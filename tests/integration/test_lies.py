"""A tenth of the clients lies in each field in turn: runs go on, honest clients lose little."""

from pathlib import Path

import numpy as np
import pytest
from federation_runs import QUIET

from benchmarks.lies import LIES, lied
from fedmoe.config import load_config
from fedmoe.data.load import load_federation
from fedmoe.insight.insight import SCALARS
from fedmoe.insight.payloads import PAYLOADS, Facts
from fedmoe.messages import words
from fedmoe.models import build_model
from fedmoe.tracking import RunDirectory

LIARS = [3]
USUAL = [
    *QUIET,
    "data.num_clients=12",
    "rounds=3",
    "evaluate_every=3",
    "tracking.checkpoint_every=0",
]
CLASSES = [
    *USUAL, "data=synthetic_classes", "data.samples_per_client=30", "data.num_features=4",
    "data.num_classes=3", "partition=natural", "strategy=fedmoe", "strategy.warm_up_rounds=1",
    "model=linear", "meta_learner=[prototypes,expert_assignment,step_size,hyperparameters]",
    "insight.sketch_size=4", "insight.public_samples=5", "insight.every=1",
]  # fmt: skip
LINE = [
    *USUAL, "data=synthetic_linear", "data.samples_per_client=30", "data.num_features=3",
    "partition=natural", "model=linear", "strategy=insight", "training.learning_rate=0.02",
]  # fmt: skip


def arrays_of(overrides: list[str]) -> list[str]:
    """All arrays of all payloads that there are, but those that need guidance first."""
    config = load_config(overrides)
    task = load_federation(config.data, config.partition, 0).task
    facts = Facts.of(config, task, build_model(config.model, task, 0))
    kinds = [kind(facts) for kind in PAYLOADS.values() if kind.made_by is None]
    return [name for kind in kinds if kind.fits for name in kind.shapes]
