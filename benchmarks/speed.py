"""How long a round of federated averaging takes: this project, and what it can be compared with.

    python benchmarks/speed.py [--peers] [--repeats 7] [--out runs/speed] [--sides NAME ...]
        [--data digits synth] [--models linear mlp moe] [--sampled 10 100]

Every side trains the same clients on the same samples from the same weights: batch 32, one
local epoch, SGD 0.05, FedAvg. Every side is a process of its own; they take turns, so that the
ratios hold where a shared machine's times do not. Ours are whole runs: strategy, messages,
guard, run directory. Prints tables, and leaves them with a plot and all figures under --out.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a script, from anywhere

from rich.console import Console

from benchmarks import roster
from benchmarks.cases import CLIENTS, DATA, MODELS, Case, write_work
from benchmarks.harness import Child, RefusedError, take_turns
from benchmarks.plot import draw
from benchmarks.results import Measurement, machine, save
from benchmarks.tables import speed_tables, wide_console


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    options = read_options(words)
    console = wide_console()
    sides: list[str] = options.sides or roster.default(options.peers)
    refused = roster.prepare(sides)
    options.out.mkdir(parents=True, exist_ok=True)
    measured: list[Measurement] = []
    for place in product(options.data, options.models, options.sampled):
        case = Case(*place)
        able = [side for side in sides if side not in refused]
        console.print(f"{case}: {len(able)} sides, {options.repeats} turns of each", markup=False)
        measured += measure(case, able, options.repeats, refused)
        save(measured, options.out / "speed.json")
    for side, reason in refused.items():
        console.print(f"{side} is left out: {reason}", markup=False)
    show(measured, options.out, console)


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time a round of federated averaging.")
    parser.add_argument("--peers", action="store_true", help="blazefl, pfl and fluke as well")
    parser.add_argument("--repeats", type=int, default=7, help="measured turns of each side")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sampled", nargs="+", type=int, default=[10, 100], help="clients a round")
    parser.add_argument("--sides", nargs="+", choices=roster.ALL, help="these, and no others")
    parser.add_argument("--out", type=Path, default=Path("runs", "speed"))
    options = parser.parse_args(words)
    if options.repeats < 1 or not all(1 <= number <= CLIENTS for number in options.sampled):
        parser.error(f"--repeats from 1, --sampled from 1 to {CLIENTS}")
    return options


def measure(
    case: Case, sides: Sequence[str], turns: int, refused: dict[str, str]
) -> list[Measurement]:
    """Start the sides one after the other, let them play in turn, and end them.

    Args:
        case: the work.
        sides: names of the roster.
        turns: measured turns of each.
        refused: gets the sides that cannot run here, with their reasons.

    Raises:
        RuntimeError: a side failed, or did not learn.
    """
    with tempfile.TemporaryDirectory(prefix="fedmoe-benchmark-") as folder, ExitStack() as stack:
        work = Path(folder, "work.npz")
        nothing_learnt = write_work(case, work)
        children: dict[str, Child] = {}
        for number, side in enumerate(sides):
            try:
                child = Child(roster.command(side, work), Path(folder, f"{number}.log"))
            except RefusedError as error:
                refused[side] = str(error)
                continue
            stack.enter_context(child)
            child.pause()
            children[side] = child
        seconds = take_turns(children, turns)
        measured = []
        for side, child in children.items():
            child.resume()
            peak, loss = child.peak_mb(), child.stop()
            if loss is None or loss >= nothing_learnt:
                raise RuntimeError(f"{case}, {side}: the loss is {loss}, was {nothing_learnt}")
            measured.append(
                Measurement(
                    data=case.data, model=case.model, sampled=case.sampled, side=side,
                    seconds=seconds[side], startup=child.startup, peak_mb=peak, loss=loss,
                )
            )  # fmt: skip
        return measured


def show(measured: Sequence[Measurement], out: Path, console: Console) -> None:
    """Print the tables, and write them and the plot."""
    tables = speed_tables(measured)
    for table in tables:
        console.print(table.as_rich())
    text = "\n".join([machine(), *(table.as_markdown() for table in tables)])
    (out / "speed.md").write_text(text, encoding="utf-8")
    draw(measured, out / "speed.png")
    console.print(f"figures, tables and plot: {out}", markup=False)


if __name__ == "__main__":
    main()
