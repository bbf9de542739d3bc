"""Which method is best for which clients: all strategies, from like clients to unlike ones.

    python benchmarks/regimes.py [--settings NAME ...] [--methods NAME ...] [--seeds 5]
        [--tuning-seeds 1] [--workers 2] [--out docs/results] [--records runs/regimes.jsonl]
    python benchmarks/regimes.py --quick

Every cell is a run of fedmoe as `fedmoe-simulate +experiment=regimes/SETTING` does it. First each
method's configurations are tried in each setting and one is chosen by validation accuracy, then
the chosen ones are run on other seeds. Each finished run is a line of the records: after Ctrl-C
the same command goes on where it was. Leaves Markdown tables and PNGs under --out.
"""

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a script, from anywhere

from rich.console import Console

from benchmarks.study.choosing import choose
from benchmarks.study.command import INTERRUPTED, command, parse, study_parser
from benchmarks.study.comparison import Comparison
from benchmarks.study.document import write_documents
from benchmarks.study.execution import Execute, run_all
from benchmarks.study.methods import METHODS, Words
from benchmarks.study.outcomes import Records
from benchmarks.study.reproduction import SEEDS, agreements, runs_of
from benchmarks.study.runs import FIRST_TUNING_SEED, Cell, Plan, shuffled
from benchmarks.study.settings import SETTINGS
from benchmarks.study.showing import Display
from benchmarks.tables import wide_console

_QUICK = Plan(
    settings=("clustered", "permuted"),
    methods=("local", "fedavg", "fedem", "ifca", "fedmoe", "fedmoe_untuned"),
    seeds=(0, 1),
    tuning_seeds=(FIRST_TUNING_SEED,),
    configurations=2,
    extra=("rounds=20",),
)


def main(words: Sequence[str] | None = None, execute: Execute | None = None) -> int:
    """Run what is missing, and write it up.

    Args:
        words: of the command line.
        execute: does one run; the real thing if `None`.

    Returns:
        The exit code.
    """
    options = read_options(words)
    console = wide_console()
    records = Records(options.records)
    plan = plan_of(options)
    reproduction = () if options.quick else SEEDS
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        comparison = conduct(plan, reproduction, records, options.workers, console, execute)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        return INTERRUPTED
    called = command("regimes", words)
    agreed = agreements(plan, records, reproduction)
    for sheet in write_documents(options.out, comparison, agreed, len(reproduction), called):
        console.print(sheet.as_rich())
    console.print(f"tables and plots: {options.out}", markup=False)
    return 0


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    about = "Compare all methods on all kinds of clients."
    parser = study_parser("regimes", about, workers=2, quick="two settings, few short runs")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME")
    parser.add_argument("--seeds", type=int, help="of the table; 5")
    parser.add_argument("--tuning-seeds", type=int, help="of each configuration; 1")
    return parse(parser, words, ["seeds", "tuning_seeds"])


def plan_of(options: argparse.Namespace) -> Plan:
    """What the command line asks for, in the order of the tables."""
    usual = Plan(
        settings=tuple(SETTINGS), methods=tuple(METHODS), seeds=range(5),
        tuning_seeds=(FIRST_TUNING_SEED,),
    )  # fmt: skip
    base = _QUICK if options.quick else usual
    settings, methods = options.settings or base.settings, options.methods or base.methods
    first = FIRST_TUNING_SEED
    return Plan(
        settings=[name for name in SETTINGS if name in settings],
        methods=[name for name in METHODS if name in methods],
        seeds=range(options.seeds) if options.seeds else base.seeds,
        tuning_seeds=(
            range(first, first + options.tuning_seeds) if options.tuning_seeds
            else base.tuning_seeds
        ),
        configurations=base.configurations,
        extra=base.extra,
    )  # fmt: skip


def conduct(
    plan: Plan,
    reproduction: Sequence[int],
    records: Records,
    workers: int,
    console: Console,
    execute: Execute | None = None,
) -> Comparison:
    """Tune, choose, and run the table; what the records know already is not run again.

    Args:
        plan: what to compare.
        reproduction: seeds of the published first trial; none leaves it out.
        records: of finished runs; get the new ones.
        workers: processes.
        console: for the progress.
        execute: does one run.
    """
    tuning = plan.tuning_runs()
    published = [run for runs in runs_of(plan, reproduction).values() for run in runs]
    later = len(plan.settings) * len(plan.methods) * len(plan.seeds)
    first = [*tuning, *published]
    done = sum(run in records for run in first)
    with Display(console, len(first) + later, done) as display:
        run_all(shuffled(first), records, workers, display.advance, execute)
        chosen: Mapping[Cell, Words] = choose(tuning, records)
        table = plan.table_runs(chosen)
        display.phase("table", len(first) + sum(run in records for run in table))
        run_all(shuffled(table), records, workers, display.advance, execute)
    return Comparison.of(plan, chosen, records)


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
