"""How seconds per round and memory grow with the federation; each size is a process of its own.

    python benchmarks/scale.py [--parts everybody cohort budget] [--rounds 7] [--out runs/scale]

- everybody: 10 to 10,000 clients of 20 samples, a linear model, all clients train in each round;
- cohort: 100 to 100,000 clients of 200 samples made on demand, an MLP, 100 train in each round;
- budget: 10,000 such clients, 1,000 per round, 20 rounds, as fedmoe's own command does it, with
  all clients evaluated after each round, checkpoints and plots; the peak is to stay under 1.5 GiB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a script, from anywhere

from benchmarks.cases import MODELS, QUIET, TRAINING
from benchmarks.harness import Child, environment
from benchmarks.plot import draw_scale
from benchmarks.results import Size, machine, save
from benchmarks.tables import Sheet, scale_tables, significant, wide_console

# 29 samples less validation and test parts are 20 to train on; of 286, 200.
HELD = "data=synthetic_mixture data.samples_per_client=29 data.num_features=64 data.num_classes=10"
MADE = "data=synthetic_classes data.samples_per_client=286 data.num_features=64 data.num_classes=10"


@dataclass(frozen=True)
class Part:
    """A row of sizes.

    Attributes:
        data: words for where samples come from.
        model: a key of `MODELS`.
        sizes: numbers of clients, and of those that train in a round.
    """

    data: str
    model: str
    sizes: Sequence[tuple[int, int]]


PARTS = {
    "everybody": Part(HELD, "linear", [(10**n, 10**n) for n in range(1, 5)]),
    "cohort": Part(MADE, "mlp", [(10**n, 100) for n in range(2, 6)]),
}
BUDGET = f"strategy=fedavg strategy.fraction_train=0.1 rounds=20 {MODELS['mlp']} {TRAINING} {MADE} "
BUDGET += "data.num_clients=10000 partition=natural"


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description="Time and weigh federations of many sizes.")
    names = [*PARTS, "budget"]
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds of each size")
    parser.add_argument("--out", type=Path, default=Path("runs", "scale"))
    options = parser.parse_args(words)
    options.out.mkdir(parents=True, exist_ok=True)
    console = wide_console()
    sizes = []
    for size in measure([name for name in options.parts if name in PARTS], options.rounds):
        console.print(f"{size.part}: {size.clients} clients", markup=False)
        sizes.append(size)
        save(sizes, options.out / "scale.json")
    tables = scale_tables(sizes)
    if "budget" in options.parts:
        tables.append(whole_run(BUDGET.split()))
    for table in tables:
        console.print(table.as_rich())
    text = "\n".join([machine(), *(table.as_markdown() for table in tables)])
    (options.out / "scale.md").write_text(text, encoding="utf-8")
    if sizes:
        draw_scale(sizes, options.out / "scale.png")
    console.print(f"figures, tables and plot: {options.out}", markup=False)


def measure(parts: Sequence[str], rounds: int) -> Iterator[Size]:
    """One size after the other.

    Raises:
        RuntimeError: a run failed.
    """
    with tempfile.TemporaryDirectory(prefix="fedmoe-benchmark-") as folder:
        for name in parts:
            part = PARTS[name]
            for clients, sampled in part.sizes:
                command = [sys.executable, "-m", "benchmarks.sides.ours", "-"]
                words = words_of(part, clients, sampled)
                with Child([*command, *words], Path(folder, "log")) as child:
                    seconds = [child.round() for _ in range(rounds)]
                    yield Size(
                        part=name, clients=clients, sampled=sampled, seconds=seconds,
                        startup=child.startup, peak_mb=child.peak_mb(),
                    )  # fmt: skip
                    child.stop()


def words_of(part: Part, clients: int, sampled: int) -> list[str]:
    """The run as fedmoe's command line says it."""
    text = (
        f"{part.data} data.num_clients={clients} partition=natural {MODELS[part.model]} "
        f"{TRAINING} {QUIET} strategy.fraction_train={sampled / clients}"
    )
    return text.split()


def whole_run(words: Sequence[str]) -> Sheet:
    """Time and weigh a run of fedmoe's own command, process start to exit.

    Raises:
        RuntimeError: it failed; what it said.
    """
    with tempfile.TemporaryDirectory(prefix="fedmoe-benchmark-") as folder:
        run_dir, log = Path(folder, "run"), Path(folder, "log")
        command = [sys.executable, "-m", "fedmoe.simulate", *words, f"hydra.run.dir={run_dir}"]
        began = time.perf_counter()
        with log.open("wb") as stream:
            process = subprocess.Popen(command, env=environment(), stdout=stream, stderr=stream)
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)  # or Popen thinks that it runs on
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{log.read_text(errors='replace')[-2000:]}")
        lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    # A process inherits the peak of who started it: here some 100 MB, less than any run takes.
    unit = 1 if sys.platform == "darwin" else 1024
    rows = [
        ["peak, MiB (at most 1,536)", f"{usage.ru_maxrss * unit / 2**20:,.0f}"],
        ["s per round", significant(median(json.loads(line)["seconds"] for line in lines))],
        ["start to exit, s", significant(seconds)],
    ]
    return Sheet(f"budget: {' '.join(words)}", ["", f"{len(lines)} rounds"], rows)


if __name__ == "__main__":
    main()
