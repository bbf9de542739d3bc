"""What the MetaLearner's share of a round costs, by policy and number of clients.

    python benchmarks/meta_learning.py [--clients 100 1000] [--rounds 100]

A round is what the server does once insights have come: remember them, learn, choose whom to ask
next, and look up each client's guidance. Insights are drawn, nothing is trained. Either all clients
train in each round, and what follows from their data is told by all at once in the first, the worst
of all; or a tenth does, and those who are new among them tell theirs. Each row is a process of its
own, which has imported what policies import late (once a process, some 0.2 s). Memory is what the
MetaLearner remembers, and by how much the process grew at its largest, which includes what the
clients sent.
"""

import argparse
import importlib
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a script, from anywhere

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.learning_cases import CASES, CLASSES, Case
from benchmarks.results import machine
from benchmarks.tables import Sheet, significant, wide_console
from fedmoe.config import load_config
from fedmoe.heap import settled_heap
from fedmoe.insight import Memory, MetaLearner, RoundInsights
from fedmoe.insight.columns import Columns, PayloadColumns
from fedmoe.insight.insight import SCALARS, WHOLE
from fedmoe.insight.policies import Setting

CLIENTS, ROUNDS = (100, 1000, 10_000), 100
_MOST = 2**30  # bytes to remember; by default 64 MiB are kept, and of more the oldest are dropped


class Measured(NamedTuple):
    """One process: milliseconds by round, and bytes.

    Attributes:
        milliseconds: of each round.
        remembered: by the MetaLearner.
        grown: by how much the process has.
    """

    milliseconds: list[float]
    remembered: int
    grown: int


def measure(name: str, clients: int, share: float, rounds: int) -> Measured:
    """Rounds of a policy.

    Args:
        name: of the case.
        clients: that there are.
        share: of them that trains in a round.
        rounds: how many.
    """
    case = next(case for case in CASES if case.name == name)
    importlib.import_module("scipy.optimize")
    config = load_config(["strategy=fedavg", *case.words])
    learner = MetaLearner(config.meta_learner, Memory(max_bytes=_MOST))
    learner.prepare(Setting(learning_rate=0.1, num_experts=CLASSES))
    rng = np.random.default_rng(0)
    before = _peak()
    payloads = case.make(rng, clients, case.features)
    with settled_heap():  # as runs have it
        seconds = play(learner, rng, payloads, clients, share, rounds)
    milliseconds = [1000 * one for one in seconds]
    return Measured(milliseconds, learner.memory.nbytes, _peak() - before)


def play(
    learner: MetaLearner,
    rng: np.random.Generator,
    payloads: Mapping[str, NDArray[np.float32]],
    clients: int,
    share: float,
    rounds: int,
) -> list[float]:
    """Seconds of each round; see `measure`, payloads being those of all clients."""
    seconds, everyone = list[float](), np.arange(clients)
    asked = np.sort(rng.choice(clients, max(1, int(share * clients)), replace=False))
    has_told = np.full(clients, False)
    for round in range(1, rounds + 1):
        insights = _insights(rng, round, asked, payloads, has_told)
        known = np.where(has_told, everyone, -1 - everyone)
        has_told[asked] = True
        client_of = dict(zip(known[asked].tolist(), asked.tolist(), strict=True))
        began = time.perf_counter()
        learner.observe(round, insights, client_of)
        known = np.where(has_told, everyone, -1 - everyone)
        chosen = learner.select(round + 1, known, len(asked)) if share < 1 else None
        for client in known.tolist():
            learner.guidance(client)
        seconds.append(time.perf_counter() - began)
        if share < 1:
            drawn = rng.choice(clients, len(asked), replace=False)
            asked = np.sort(drawn if chosen is None else everyone[chosen])
    return seconds


def _insights(
    rng: np.random.Generator,
    round: int,
    asked: NDArray[np.int64],
    payloads: Mapping[str, NDArray[np.float32]],
    has_told: NDArray[np.bool_],
) -> RoundInsights:
    """Of those asked; payloads of those of them that have told nothing yet."""
    numbers: Columns = {
        name: np.full(len(asked), 5) if name in WHOLE else rng.uniform(0.1, 1.0, len(asked))
        for name in SCALARS
    }
    numbers |= {"client_id": asked, "round": np.full(len(asked), round)}
    new = asked[~has_told[asked]]
    if not payloads or not len(new):
        return RoundInsights(numbers)
    told = PayloadColumns(new, {name: array[new] for name, array in payloads.items()})
    return RoundInsights(numbers, [told])


def _peak() -> int:
    """Bytes of this process at its largest."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def table(sizes: Sequence[int], rounds: int, cases: Sequence[Case], console: Console) -> Sheet:
    """A row for each policy and number of clients; the console is shown each as it comes."""
    columns = [
        "policy", "clients", "all train: median, ms", "worst, ms", "a tenth: median, ms",
        "worst, ms", "remembers, MB", "grows by, MB",
    ]  # fmt: skip
    rows = []
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for case in cases:
            for clients in (size for size in sizes if size <= case.most):
                found = [
                    pool.submit(measure, case.name, clients, share, rounds).result()
                    for share in (1.0, 0.1)
                ]
                times = [f(one.milliseconds) for one in found for f in (median, max)]
                sizes_mb = [found[0].remembered / 1e6, found[0].grown / 1e6]
                cells = [significant(value) for value in (*times, *sizes_mb)]
                rows.append([case.name, f"{clients:,}", *cells])
                console.print("  ".join(rows[-1]), markup=False)
    return Sheet(f"{rounds} rounds; {machine()}", columns, rows)


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time the MetaLearner's policies.")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--policies", nargs="+", default=[case.name for case in CASES])
    options = parser.parse_args(words)
    chosen = [case for case in CASES if case.name in options.policies]
    console = wide_console()
    console.print(table(options.clients, options.rounds, chosen, console).as_markdown())


if __name__ == "__main__":
    main()
