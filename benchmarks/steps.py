"""What a round of local training costs in each way that it can be done, against the yardstick.

    python benchmarks/steps.py [--repeats 31] [--threads 1] [--data digits synth]

`train_cohort` alone: no messages, no averaging. The work is that of `benchmarks/ceiling.py`: 100
clients, batch 32, one local epoch. All ways take turns in random order; the table shows lower
quartiles as ratios to the hand-written loop, which other processes disturb less than medians.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a script, from anywhere

from benchmarks.ceiling import DATA, Ceiling, Rows
from benchmarks.ceiling_steps import BALANCE, EXPERT_HIDDEN, EXPERTS, HIDDEN, STEPS, TOP_K
from fedmoe.data import Task
from fedmoe.models import Linear, MixtureOfExperts, Mlp, RouterLosses
from fedmoe.models.expert import Expert
from fedmoe.models.routers import SoftmaxRouter
from fedmoe.schema import TrainingConfig
from fedmoe.training.cohort import Cohort, train_cohort
from fedmoe.training.pool import Pool
from fedmoe.training.process import prepare_process
from fedmoe.training.terms import Proximal, Rehearsal

FEATURES, OUTPUTS, RATE, WARM_UP = 64, 10, 0.05, 3
SGD = TrainingConfig(
    optimizer="sgd", learning_rate=RATE, momentum=0.0, weight_decay=0.0, epochs=1, batch_size=32,
    reset_optimizer=True, cohort_size=500, num_threads=1, device="cpu",
)  # fmt: skip
TASK = Task(kind="classification", num_features=FEATURES, num_outputs=OUTPUTS)


class Opaque(nn.Module):
    """A user's module, of which nobody knows a stacked form."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        """Whatever is inside."""
        return self.inner(x)


@dataclass
class Work:
    """The same clients, in the form that `train_cohort` takes."""

    name: str
    pool: Pool
    cohort: Cohort

    @classmethod
    def of(cls, name: str, x_ND: Any, y_N: Any, rows: Rows, start: dict[str, Tensor]) -> "Work":
        """Pad the rows; every client starts from the same parameters."""
        clients, count_C = len(rows), np.array([len(own) for own in rows])
        rows_Cn = np.zeros((clients, count_C.max()), dtype=np.int64)
        for row, own in zip(rows_Cn, rows, strict=True):
            row[: len(own)] = own
        cohort = Cohort(
            client_C=np.arange(clients),
            rows_Cn=rows_Cn,
            count_C=count_C,
            params={key: value.expand(clients, *value.shape) for key, value in start.items()},
            seed=0,
            round=1,
            epochs_C=np.ones(clients, dtype=np.int64),
            lr_C=torch.full((clients,), RATE),
            wants_gradient_norms=False,
            wants_optimizer_state=False,
        )
        return cls(name, Pool.of(x_ND, y_N), cohort)

    def model(self) -> nn.Module:
        """A module of the yardstick's shape."""
        if self.name == "linear":
            return Linear(FEATURES, OUTPUTS)
        if self.name == "mlp":
            return Mlp(FEATURES, (HIDDEN,), OUTPUTS)
        return MixtureOfExperts(
            FEATURES, OUTPUTS, experts=Expert(0, hidden=(EXPERT_HIDDEN,)).times(EXPERTS),
            router=SoftmaxRouter(num_experts=EXPERTS, top_k=TOP_K),
        )  # fmt: skip

    def way(
        self, model: nn.Module, cohort: Cohort, config: TrainingConfig = SGD
    ) -> Callable[[], Any]:
        """Train this cohort once."""
        losses = RouterLosses(balance=BALANCE if self.name == "moe" else 0.0)
        return lambda: train_cohort(model, TASK, self.pool, config, cohort, losses)

    def ways(self) -> dict[str, Callable[[], Any]]:
        """All that are compared."""
        model, cohort, clients = self.model(), self.cohort, len(self.cohort.client_C)
        opaque = {f"inner.{key}": value for key, value in cohort.params.items()}
        rehearsal = Rehearsal(
            torch.randn(clients, OUTPUTS, FEATURES),
            torch.eye(OUTPUTS).expand(clients, -1, -1),
            torch.full((clients, OUTPUTS), 0.1),
        )
        by_autograd = self.way(model, cohort)

        def autograd() -> None:
            with mock.patch("fedmoe.training.steps.kernel_of", lambda _: None):
                by_autograd()

        return {
            "written": self.way(model, cohort),
            "with norms": self.way(model, replace(cohort, wants_gradient_norms=True)),
            "momentum": self.way(model, cohort, replace(SGD, momentum=0.9)),
            "Adam": self.way(model, cohort, replace(SGD, optimizer="adam")),
            "proximal": self.way(
                model, replace(cohort, terms=[Proximal(cohort.params, 0.1)])
            ),
            "rehearsal": self.way(model, replace(cohort, terms=[rehearsal])),
            "autograd": autograd,
            "vmap": self.way(Opaque(self.model()), replace(cohort, params=opaque)),
        }  # fmt: skip


def measure(data: str, name: str, repeats: int) -> dict[str, float]:
    """Lower quartiles in milliseconds."""
    x_ND, y_N, rows = DATA[data]()
    yardstick = Ceiling(name, x_ND, y_N, rows, batch_size=32, learning_rate=RATE)
    everyone = np.arange(len(rows))
    work = Work.of(name, x_ND, y_N, rows, yardstick.weights)
    ways = {"ceiling": lambda: yardstick.round(everyone), **work.ways()}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(WARM_UP + repeats):
        for way in random.sample(list(ways), len(ways)):
            started = time.perf_counter()
            ways[way]()
            if turn >= WARM_UP:
                times[way].append(1000 * (time.perf_counter() - started))
    return {way: float(np.quantile(values, 0.25)) for way, values in times.items()}


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time local training in all its ways.")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", nargs="+", choices=sorted(DATA), default=sorted(DATA))
    options = parser.parse_args(words)
    prepare_process(options.threads)
    results = {
        f"{data} {name}": measure(data, name, options.repeats)
        for data in options.data
        for name in STEPS
    }
    table = Table(title="One round of 100 clients, train_cohort alone; ratios to the ceiling")
    table.add_column("", no_wrap=True)
    for title in results:
        table.add_column(title.replace(" ", "\n"), justify="right")
    table.add_row("ceiling, ms", *[f"{result['ceiling']:.2f}" for result in results.values()])
    for way in next(iter(results.values())):
        if way != "ceiling":
            ratios = [f"{result[way] / result['ceiling']:.2f}" for result in results.values()]
            table.add_row(way, *ratios)
    Console().print(table)


if __name__ == "__main__":
    main()
