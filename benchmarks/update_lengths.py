"""What the limit on updates' lengths costs honest clients, and what it stops.

    python -m benchmarks.update_lengths [--rounds 15] [--seeds 3] [--strategies fedavg fedrep ...]

For each experiment and strategy, the longest update of a round in medians of the round, over all
rounds and seeds; then the accuracy of FedAvg with one client of ten that sends random updates.
"""

import argparse
import contextlib
import io
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import torch
from flwr.app import ArrayRecord, Message

from fedmoe.data.federation import Ints
from fedmoe.errors import ConfigError
from fedmoe.guard.distance import FEWEST, lengths, update_lengths
from fedmoe.messages import words
from fedmoe.messages.arrays import Stack, tensors_of
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.replies import Replies
from fedmoe.schema import RuntimeBase
from fedmoe.serving import Server
from fedmoe.simulations import InProcessGrid

EXPERIMENTS: dict[str, list[str]] = {
    **{
        name: [f"+experiment={name}"]
        for name in (
            "regimes/iid", "regimes/dirichlet", "regimes/permuted", "regimes/rotated",
            "regimes/clustered", "regimes/near_iid", "regimes/mixture", "mnist5k", "flights",
            "related", "fedavg",
        )
    },
    "iid, partition=quantity": ["+experiment=regimes/iid", "partition=quantity"],
    "dirichlet, alpha=0.05": ["+experiment=regimes/dirichlet", "partition.alpha=0.05"],
}  # fmt: skip
STRATEGIES = (
    "fedavg", "fedprox", "fedadam", "fedyogi", "fedrep", "ditto", "fedavg_finetune",
    "local_global", "fedmoe", "fedem", "ifca", "reptile",
)  # fmt: skip
ATTACKED = ["+experiment=regimes/iid", "partition.num_clients=10", "strategy=fedavg", "rounds=20"]
BAD = 2  # the client that attacks
NO_LIMIT = "runtime.max_update_ratio=null"
# What it sends: so many medians of the round (or, if absolute, so long), and the words.
ATTACKS: list[tuple[str, float, bool, list[str]]] = [
    ("honest", 0, False, []),
    ("1,000,000 long, no limit", 1e6, True, [NO_LIMIT]),
    ("1,000,000 long", 1e6, True, []),
    ("1,000 medians, no limit", 1000, False, [NO_LIMIT]),
    *((f"{times} medians", times, False, []) for times in (1000, 99, 30, 10)),
]


def run(words_of: Sequence[str], seed: int) -> float:
    """Accuracy on validation data after a run; NaN if there is no finite model."""
    quiet = ["tracking.plots=false", "tracking.progress=none", "tracking.log_level=ERROR"]
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        server = Server(overrides=[*words_of, f"seed={seed}", *quiet], run_dir=Path(folder) / "run")
        server.run()
        scores = server.metrics[-1]["validation"]["global"] or {}
    return float(scores.get("accuracy", {"mean": math.nan})["mean"])


def longest(words_of: Sequence[str], rounds: int, seeds: int) -> list[float]:
    """The longest update of each round in its median, where there are enough."""
    seen: list[float] = []

    def watch(replies: Replies, config: RuntimeBase) -> dict[int, str]:
        del config
        length_C = update_lengths(replies)
        moved = length_C[length_C > 0]
        if len(moved) >= FEWEST:
            seen.append(float(moved.max() / np.median(moved)))
        return {}

    with mock.patch("fedmoe.guard.too_far", watch):
        for seed in range(seeds):
            run([*words_of, f"rounds={rounds}", f"evaluate_every={rounds}"], seed)
    return seen


@contextlib.contextmanager
def attacking(size: float, absolute: bool) -> Iterator[None]:
    """Let one client send random updates of a size; none if it is 0."""
    honest = InProcessGrid.answer

    def answer(self: InProcessGrid, messages: Sequence[Message], clients: Ints) -> Replies:
        replies = honest(self, messages, clients)
        for part in replies.parts:
            record = part.records.get(words.ARRAYS)
            if size and isinstance(record, Stack) and BAD in clients[part.rows]:
                assert isinstance(messages, Broadcast)
                sent = messages.records[words.ARRAYS]
                assert isinstance(sent, ArrayRecord)
                spoil(record, sent, int(np.flatnonzero(clients[part.rows] == BAD)[0]))
        return replies

    def spoil(record: Stack, sent: ArrayRecord, row: int) -> None:
        before, generator = tensors_of(sent), torch.Generator().manual_seed(1)
        wanted = size if absolute else size * float(np.median(lengths(record.tensors, before)))
        step = {name: torch.randn(t.shape, generator=generator) for name, t in before.items()}
        scale = wanted / math.sqrt(sum(float((s**2).sum()) for s in step.values()))
        for name, tensor in record.tensors.items():
            tensor[row] = before[name] + scale * step[name]

    with mock.patch.object(InProcessGrid, "answer", answer):
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.update_lengths")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strategies", nargs="*", default=STRATEGIES)
    asked = parser.parse_args(arguments)
    for name, words_of in EXPERIMENTS.items():
        for strategy in asked.strategies:
            try:
                found = longest([*words_of, f"strategy={strategy}"], asked.rounds, asked.seeds)
            except ConfigError:  # the strategy needs classes
                continue
            if found:
                print(f"{name:24} {strategy:16} {len(found):4} rounds  {max(found):6.1f}")
    for name, size, absolute, words_of in ATTACKS:
        with attacking(size, absolute):
            accuracy = [run([*ATTACKED, *words_of], seed) for seed in range(asked.seeds)]
        print(f"{name:28}", "  ".join(f"{one:.2f}" for one in accuracy))
    return 0


if __name__ == "__main__":
    sys.exit(main())
