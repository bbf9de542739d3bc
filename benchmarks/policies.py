"""What the MetaLearner's policies save: rounds to a target accuracy, with and without each.

    python benchmarks/policies.py [--seeds 10] [--workers 1] [--out docs/results]
        [--records runs/policies.jsonl]
    python benchmarks/policies.py --quick

`step_size` and `hyperparameters` (with factors up to 3, and up to 1) where the learning rate is a
tenth, once, and ten times the default; `selection` where a tenth or a fifth of the clients train in
a round. A cell is the mean round in which the mean validation accuracy first reached the target,
with a 95 % confidence interval over seeds by bootstrap; a run that did not reach it counts as one
round more than it had.
Each finished run is a line of the records: after Ctrl-C the same command goes on where it was.
Leaves policies.md under --out.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a script, from anywhere

import numpy as np

import fedmoe
from benchmarks.policy_cases import NO_POLICY, Case, rate_cases, selection_cases
from benchmarks.results import machine
from benchmarks.study.command import INTERRUPTED, command, parse, study_parser
from benchmarks.study.execution import Execute, run_all
from benchmarks.study.outcomes import Records
from benchmarks.study.showing import Display
from benchmarks.tables import Sheet, wide_console
from fedmoe.tracking.summary import git_commit

_FIRST_SEED = 10  # those before were looked at when the defaults were chosen
_RESAMPLES = 10_000
_HOW_TO_READ = """\
Rounds until the mean validation accuracy over all clients first reached the target: mean over
seeds and [95 % confidence interval], by bootstrap. *n of m* reached it at all; the others count as
one round more than they had. **Bold**: better than without a policy, and the intervals do not
overlap; ~~struck out~~: worse by the same rule. Seeds draw the data's division and the initial
weights, the same for every column. What the policies do: [docs/meta-learning.md]\
(../meta-learning.md)."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % confidence interval of the mean, by the bootstrap's percentiles."""
    rng = np.random.default_rng(0)
    means = rng.choice(np.asarray(values, float), size=(_RESAMPLES, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def cell(own: Sequence[int], without: Sequence[int], most: int) -> str:
    """A mean with its interval, marked by how it compares with that of no policy.

    Args:
        own: rounds by seed.
        without: the same with no policy.
        most: rounds that a run had.
    """
    (low, high), (other_low, other_high) = interval(own), interval(without)
    mark = "**" if high < other_low else "~~" if low > other_high else ""
    there = sum(one <= most for one in own)
    count = "" if there == len(own) else f", {there} of {len(own)}"
    return f"{mark}{np.mean(own):.1f}{mark} [{low:.1f}, {high:.1f}]{count}"


def sheet(title: str, cases: Sequence[Case], seeds: Sequence[int], records: Records) -> Sheet:
    """A row per case and a column per policy."""
    policies = list(cases[0].policies)
    rows = []
    for case in cases:
        rounds = {
            policy: [case.reached(records[case.run(policy, seed)]) for seed in seeds]
            for policy in policies
        }
        cells = [cell(rounds[policy], rounds[NO_POLICY], case.rounds) for policy in policies]
        rows.append([case.name, f"{case.target:g}", *cells])
    return Sheet(title, ["", "target", *policies], rows)


def verdict(tables: Sequence[Sheet]) -> str:
    """How often each policy is better and worse beyond doubt."""
    lines = []
    for table in tables:
        for place, policy in enumerate(table.columns[3:], start=3):
            better = sum(row[place].startswith("**") for row in table.rows)
            worse = sum(row[place].startswith("~~") for row in table.rows)
            lines.append(f"- `{policy}`: better in {better} of {len(table.rows)}, worse in {worse}")
    return "\n".join(lines)


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
    parts = {
        "Learning rates: `step_size` and `hyperparameters`": rate_cases(),
        "Who trains: `selection`": selection_cases(),
    }
    if options.quick:
        parts = {title: cases[:2] for title, cases in parts.items()}
    seeds = range(_FIRST_SEED, _FIRST_SEED + options.seeds)
    cases = [case for some in parts.values() for case in some]
    runs = [case.run(p, seed) for case in cases for p in case.policies for seed in seeds]
    try:
        with Display(console, len(runs), sum(run in records for run in runs)) as display:
            run_all(runs, records, options.workers, display.advance, execute)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        return INTERRUPTED
    tables = [sheet(title, some, seeds, records) for title, some in parts.items()]
    write(options.out / "policies.md", tables, seeds, command("policies", words))
    for table in tables:
        console.print(table.as_rich())
    return 0


def write(path: Path, tables: Sequence[Sheet], seeds: Sequence[int], called: list[str]) -> None:
    """The document."""
    made_by = f"fedmoe {fedmoe.__version__}, commit {git_commit() or 'unknown'}; {machine()}"
    named = ", ".join(map(str, seeds))
    sections = [
        f"## {table.title}\n\n{Sheet('', table.columns, table.rows).as_markdown().strip()}"
        for table in tables
    ]
    content = [
        "# What the MetaLearner's policies save", f"```\n{shlex.join(called)}\n```",
        f"{made_by}. Seeds {named}.", _HOW_TO_READ, verdict(tables), *sections,
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(content) + "\n", encoding="utf-8")


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    about = "Rounds to a target with and without policies."
    parser = study_parser("policies", about, workers=1, quick="few cases, three seeds")
    parser.add_argument("--seeds", type=int, help="10")
    options = parse(parser, words, ["seeds"])
    options.seeds = options.seeds or (3 if options.quick else 10)
    return options


if __name__ == "__main__":
    sys.exit(main())
