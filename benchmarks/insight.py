"""What insight exchange is worth: accuracy or error against bytes, level by level.

    python benchmarks/insight.py [--settings NAME ...] [--methods NAME ...] [--seeds 5]
        [--workers 2] [--out docs/results] [--records runs/insight.jsonl]
    python benchmarks/insight.py --quick

All payload levels, policies on and off, and the strategies that send weights, in the settings of
`regimes.py`, with enough data for everybody, and with related linear clients. Learning rates are
chosen by validation accuracy on another seed than the tables'. Each finished run is a line of the
records: after Ctrl-C the same command goes on where it was. Leaves insight.md and insight.png
under --out.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a script, from anywhere

from benchmarks.study.choosing import choose
from benchmarks.study.command import INTERRUPTED, command, parse, study_parser
from benchmarks.study.comparison import Comparison
from benchmarks.study.execution import Execute, run_all
from benchmarks.study.haste import haste_runs
from benchmarks.study.levels import ABLATIONS, INSIGHT_SETTINGS, LEVELS, LINEAR, REFERENCES
from benchmarks.study.methods import Method
from benchmarks.study.outcomes import Records
from benchmarks.study.runs import FIRST_TUNING_SEED, Plan, shuffled
from benchmarks.study.settings import Family
from benchmarks.study.showing import Display
from benchmarks.study.worth import write_worth
from benchmarks.tables import wide_console

_METHODS: dict[Family, Sequence[Method]] = {
    "digits": [*REFERENCES, *LEVELS, *ABLATIONS],
    "synthetic": [*REFERENCES, *LEVELS, *ABLATIONS],
    "mnist5k": [*REFERENCES, *LEVELS],  # whose runs take five times as long
    "linear": LINEAR,
}
_HASTE_SEEDS = 10  # single runs cross a line now and then: more of them
_QUICK = ("permuted", "dirichlet=0.1", "related=0.3")


def main(words: Sequence[str] | None = None, execute: Execute | None = None) -> int:
    """Run what is missing, and write it up.

    Args:
        words: of the command line.
        execute: does one run; the real thing if `None`.

    Returns:
        The exit code.
    """
    options = read_options(words)
    console, records = wide_console(), Records(options.records)
    plans = plans_of(options)
    hasty = {} if options.quick or options.settings else haste_runs(range(_HASTE_SEEDS))
    first = [run for plan in plans.values() for run in plan.tuning_runs()]
    first += [run for runs in hasty.values() for run in runs]
    later = sum(len(p.settings) * len(p.methods) * len(p.seeds) for p in plans.values())
    try:
        done = sum(run in records for run in first)
        with Display(console, len(first) + later, done) as display:
            run_all(shuffled(first), records, options.workers, display.advance, execute)
            chosen = {family: choose(p.tuning_runs(), records) for family, p in plans.items()}
            table = [run for f, plan in plans.items() for run in plan.table_runs(chosen[f])]
            display.phase("table", len(first) + sum(run in records for run in table))
            run_all(shuffled(table), records, options.workers, display.advance, execute)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        return INTERRUPTED
    found: Mapping[Family, Comparison] = {
        family: Comparison.of(plan, chosen[family], records) for family, plan in plans.items()
    }
    called = command("insight", words)
    for sheet in write_worth(options.out, found, hasty, records, called):
        console.print(sheet.as_rich())
    console.print(f"tables and plot: {options.out}", markup=False)
    return 0


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    about = "What insight exchange is worth, byte by byte."
    parser = study_parser("insight", about, workers=2, quick="three settings, few short runs")
    names = dict.fromkeys(m.name for methods in _METHODS.values() for m in methods)
    parser.add_argument("--settings", nargs="+", choices=INSIGHT_SETTINGS, metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=names, metavar="NAME")
    parser.add_argument("--seeds", type=int, help="of the tables; 5")
    return parse(parser, words, ["seeds"])


def plans_of(options: argparse.Namespace) -> dict[Family, Plan]:
    """What the command line asks for, by kind of data."""
    settings = options.settings or (_QUICK if options.quick else INSIGHT_SETTINGS)
    plans: dict[Family, Plan] = {}
    for family, methods in _METHODS.items():
        own = [m.name for m in methods if not options.methods or m.name in options.methods]
        where = [n for n, s in INSIGHT_SETTINGS.items() if s.family == family and n in settings]
        if not own or not where:
            continue
        plans[family] = Plan(
            settings=where, methods=own, seeds=range(options.seeds or (2 if options.quick else 5)),
            tuning_seeds=(FIRST_TUNING_SEED,), configurations=1 if options.quick else None,
            extra=("rounds=10",) if options.quick else (),
            methods_by_name={method.name: method for method in methods},
            settings_by_name=INSIGHT_SETTINGS,
        )  # fmt: skip
    return plans


if __name__ == "__main__":
    sys.exit(main())
