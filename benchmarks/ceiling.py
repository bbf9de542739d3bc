"""The yardstick: federated averaging as a hand-written loop over stacked tensors.

    python benchmarks/ceiling.py [--repeats 15] [--chunk 50]

Plain torch functions and written gradients, nothing of fedmoe in the loop: what this machine
can do where nobody sends messages, guards, records, or lets anybody change the algorithm. One
local epoch of plain SGD per round, clients ordered by size and trained in chunks that shrink to
the clients still active, then the average weighted by samples.

Letters: N samples, D features, K clients, C clients of a chunk, A of them still active, B batch,
n most samples of a client.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a script, from anywhere

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.ceiling_steps import STEPS, Weights, initial_weights

Rows = Sequence[NDArray[np.int64]]

FASTEST_CHUNK = {"linear": 100, "mlp": 50, "moe": 50}


class Ceiling:
    """Rounds of federated averaging.

    Attributes:
        weights: the global model; names and shapes are those of fedmoe's models.
    """

    def __init__(
        self,
        model: str,
        x_ND: NDArray[np.float32],
        y_N: NDArray[np.int64],
        rows: Rows,
        *,
        batch_size: int,
        learning_rate: float,
        seed: int = 0,
        weights: Mapping[str, Tensor] | None = None,
        chunk: int | None = None,
    ) -> None:
        """Lay out the data.

        Args:
            model: `linear`, `mlp` (64-128-10) or `moe` (4 x 64-64-10, top 2, balance 0.01).
            x_ND: samples.
            y_N: their classes.
            rows: each client's samples.
            batch_size: samples per step.
            learning_rate: of SGD.
            seed: of the order of samples, and of the weights where none are given.
            weights: to start from.
            chunk: clients stacked at once; what was fastest for the model if `None`.
        """
        self.x_ND, self.y_N = torch.from_numpy(x_ND), torch.from_numpy(y_N)
        self.count_K = np.array([len(own) for own in rows])
        self.rows_Kn = np.zeros((len(rows), self.count_K.max()), dtype=np.int64)
        for row, own in zip(self.rows_Kn, rows, strict=True):
            row[: len(own)] = own
        self.batch_size, self.learning_rate = batch_size, learning_rate
        self.chunk = chunk or FASTEST_CHUNK[model]
        self.random = np.random.default_rng(seed)
        self.step = STEPS[model]
        outputs = int(y_N.max()) + 1
        drawn = dict(weights) if weights else initial_weights(model, x_ND.shape[1], outputs, seed)
        self.weights = {name: value.clone() for name, value in drawn.items()}

    @torch.no_grad()
    def round(self, clients: NDArray[np.int64], order: Rows | None = None) -> None:
        """Train the clients for one epoch and average them.

        Args:
            clients: who takes part.
            order: each one's samples in the order to use them; drawn afresh if `None`.
        """
        largest_first = np.argsort(-self.count_K[clients], kind="stable")
        count_C = self.count_K[clients][largest_first]
        if order is None:
            rows_Cn = self._shuffled(clients[largest_first], count_C)
        else:
            rows_Cn = self.rows_Kn[clients[largest_first]]
            for row, client in zip(rows_Cn, largest_first, strict=True):
                row[: len(order[client])] = order[client]
        share_C = torch.from_numpy((count_C / count_C.sum()).astype(np.float32))
        average = {name: torch.zeros_like(value) for name, value in self.weights.items()}
        for start in range(0, len(clients), self.chunk):
            stop = start + self.chunk
            trained = self._train(torch.from_numpy(rows_Cn[start:stop]), count_C[start:stop])
            for name, value in trained.items():
                average[name].view(-1).addmv_(value.flatten(1).t(), share_C[start:stop])
        self.weights = average

    def _shuffled(self, clients: NDArray[np.int64], count_C: NDArray[np.int64]) -> Any:
        """Each client's rows in random order: random keys that carry their position."""
        width = int(count_C.max())
        position = np.arange(width)
        bits = width.bit_length()
        keys = self.random.integers(0, 1 << (62 - bits), (len(clients), width)) << bits | position
        keys[position >= count_C[:, None]] = np.iinfo(np.int64).max
        keys.sort(axis=1)
        place = np.minimum(keys & ((1 << bits) - 1), width - 1)
        return np.take_along_axis(self.rows_Kn[clients, :width], place, axis=1)

    def _train(self, rows_Cn: Tensor, count_C: NDArray[np.int64]) -> Weights:
        """One epoch of a chunk whose clients are ordered by size."""
        weights = {
            name: value.expand(len(rows_Cn), *value.shape).contiguous()
            for name, value in self.weights.items()
        }
        for start in range(0, int(count_C[0]), self.batch_size):
            real_A = np.minimum(count_C[count_C > start] - start, self.batch_size)
            active, width = len(real_A), int(real_A[0])
            rows = rows_Cn[:active, start : start + width].reshape(-1)
            x_ABD = self.x_ND.index_select(0, rows).view(active, width, -1)
            y_A1B = self.y_N.index_select(0, rows).view(active, 1, width)
            share = (np.arange(width) < real_A[:, None]) / real_A[:, None]
            share_A1B = torch.from_numpy(share.astype(np.float32)).unsqueeze(1)
            now = {name: value[:active] for name, value in weights.items()}
            self.step(now, x_ABD, y_A1B, share_A1B, self.learning_rate)
        return weights


def digits(clients: int = 100) -> tuple[Any, Any, Rows]:
    """The training parts of scikit-learn's digits, Dirichlet 0.5 over the clients."""
    from fedmoe.config import load_config
    from fedmoe.data import load_federation, pooled

    config = load_config(
        ["data=digits", "partition=dirichlet", "partition.alpha=0.5", "partition.min_samples=3",
         f"partition.num_clients={clients}"]
    )  # fmt: skip
    data = pooled(load_federation(config.data, config.partition, config.seed))
    return data.x_ND, data.y_N, [data.parts["train"].of(k) for k in range(clients)]


def synth(clients: int = 100, samples: int = 200) -> tuple[Any, Any, Rows]:
    """64 features, 10 classes by a noisy linear rule, as many samples for everybody."""
    random = np.random.default_rng(0)
    x_ND = random.normal(size=(clients * samples, 64)).astype(np.float32)
    score = x_ND @ random.normal(size=(64, 10)) + random.normal(size=(len(x_ND), 10))
    return x_ND, score.argmax(axis=1), list(np.arange(len(x_ND)).reshape(clients, samples))


DATA: dict[str, Callable[[], tuple[Any, Any, Rows]]] = {"digits": digits, "synth": synth}


def main(words: Sequence[str] | None = None) -> None:
    """Print milliseconds per round."""
    parser = argparse.ArgumentParser(description="Time the hand-written stacked loop.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--chunk", type=int, help="clients stacked at once")
    options = parser.parse_args(words)
    from fedmoe.training.process import prepare_process

    prepare_process(num_threads=1)
    for name, load in DATA.items():
        x_ND, y_N, rows = load()
        for model in STEPS:
            ceiling = Ceiling(
                model, x_ND, y_N, rows, batch_size=32, learning_rate=0.05, chunk=options.chunk
            )
            times = []
            for _ in range(3 + options.repeats):
                started = time.perf_counter()
                ceiling.round(np.arange(len(rows)))
                times.append(time.perf_counter() - started)
            print(f"{name:8}{model:8}{1000 * median(times[3:]):8.2f} ms per round")


if __name__ == "__main__":
    main()
