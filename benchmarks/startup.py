"""What a small run costs, process start to exit, against the imports that it cannot do without.

    python benchmarks/startup.py [--repeats 9]

Pairs, one after the other: the bare imports of torch, Flower and Hydra, and the canonical run of
5 clients and 5 rounds (`+experiment=scarcity`) with its records, checkpoint, plots and summary.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a script, from anywhere

from benchmarks.harness import environment
from benchmarks.results import machine
from benchmarks.tables import Sheet, significant, wide_console

IMPORTS = [sys.executable, "-c", "import torch, flwr.serverapp, hydra"]
RUN = [sys.executable, "-m", "fedmoe.simulate", "+experiment=scarcity"]


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time the canonical small run.")
    parser.add_argument("--repeats", type=int, default=9, help="measured pairs")
    repeats = parser.parse_args(words).repeats
    with tempfile.TemporaryDirectory(prefix="fedmoe-benchmark-") as folder:
        pairs = measure_pairs(
            lambda _: seconds_of(IMPORTS),
            lambda number: seconds_of([*RUN, f"hydra.run.dir={folder}/{number}"]),
            repeats,
        )
    console = wide_console()
    console.print(machine())
    console.print(as_sheet(pairs).as_rich())


def measure_pairs(
    first: Callable[[int], float], second: Callable[[int], float], repeats: int
) -> list[tuple[float, float]]:
    """Both in turn, after a pair that does not count; each is given the number of its turn."""
    pairs = [(first(number), second(number)) for number in range(1 + repeats)]
    return pairs[1:]


def seconds_of(command: Sequence[str]) -> float:
    """From a process's start to its exit.

    Raises:
        RuntimeError: it failed; what it said.
    """
    began = time.perf_counter()
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=False, errors="replace"
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return seconds


def as_sheet(pairs: Sequence[tuple[float, float]]) -> Sheet:
    """The ratio first."""
    ratios = sorted(run / imports for imports, run in pairs)
    imports, run = (median(column) for column in zip(*pairs, strict=True))
    rows = [
        ["run / imports", significant(median(ratios))],
        ["lowest and highest", f"{significant(ratios[0])} to {significant(ratios[-1])}"],
        ["imports, s", significant(imports)],
        ["run, s", significant(run)],
        ["difference, s", significant(median(b - a for a, b in pairs))],
    ]
    return Sheet(f"medians of {len(pairs)} pairs", ["", "start to exit"], rows)


if __name__ == "__main__":
    main()
