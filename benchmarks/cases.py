"""What is measured: each data set, model and number of sampled clients, written for all sides."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLIENTS, BATCH_SIZE, LEARNING_RATE = 100, 32, 0.05
DATA = {
    "digits": f"data=digits partition=dirichlet partition.alpha=0.5 partition.min_samples=3 "
    f"partition.num_clients={CLIENTS}",
    # 286 samples less validation and test parts are 200 to train on.
    "synth": f"data=synthetic_mixture partition=natural data.num_clients={CLIENTS} "
    "data.samples_per_client=286 data.num_features=64 data.num_classes=10",
}
MODELS = {
    "linear": "model=linear",
    "mlp": "model=mlp model.hidden=[128]",
    # Switch's balance loss alone, as on the other sides.
    "moe": "model=moe model.num_experts=4 model.router.top_k=2 model.hidden=[64] "
    "model.losses.importance=0",
}
TRAINING = (
    f"training=sgd training.epochs=1 training.batch_size={BATCH_SIZE} training.momentum=0 "
    f"training.learning_rate={LEARNING_RATE} training.num_threads=1 training.device=cpu"
)
# A run that goes on until it is stopped, and writes down all that a run writes down.
QUIET = (
    "rounds=1000000 evaluate_every=1000000 tracking.progress=none tracking.plots=false "
    "tracking.checkpoint_every=0"
)


@dataclass(frozen=True)
class Case:
    """One table cell's work.

    Attributes:
        data: a key of `DATA`.
        model: a key of `MODELS`.
        sampled: clients per round, of `CLIENTS`.
    """

    data: str
    model: str
    sampled: int

    def __str__(self) -> str:
        return f"{self.data}, {self.model}, {self.sampled} of {CLIENTS} clients"

    @property
    def words(self) -> list[str]:
        """The experiment as fedmoe's command line says it."""
        share = f"strategy.fraction_train={self.sampled / CLIENTS}"
        return [*f"{DATA[self.data]} {MODELS[self.model]} {TRAINING} {QUIET}".split(), share]


def write_work(case: Case, path: Path) -> float:
    """Write the samples, who has which, and the initial weights, for `plain.Work` to read.

    Returns:
        The loss of the initial weights on the test samples, in nats.
    """
    from benchmarks.plain import Work
    from fedmoe.clients import load_experiment
    from fedmoe.config import load_config, to_json
    from fedmoe.data import pooled

    experiment = load_experiment(to_json(load_config(case.words)))
    data = pooled(experiment.data)
    test = data.parts["test"].order
    arrays: dict[str, NDArray[Any]] = {
        "x_ND": data.x_ND, "y_N": data.y_N,
        "order": data.parts["train"].order, "offsets": data.parts["train"].offsets,
        "test_x_ND": data.x_ND[test], "test_y_N": data.y_N[test],
        "model": np.array(case.model), "words": np.array(case.words),
        "sampled": np.array(case.sampled), "batch_size": np.array(BATCH_SIZE),
        "learning_rate": np.array(LEARNING_RATE),
    }  # fmt: skip
    arrays |= {f"initial/{name}": value.numpy() for name, value in experiment.initial.items()}
    np.savez(path, allow_pickle=False, **arrays)
    work = Work(path)
    return work.loss(work.module())
