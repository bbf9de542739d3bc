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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a script, from anywhere

import numpy as np

import fedmoe
from benchmarks.harness import environment
from benchmarks.results import machine
from benchmarks.study.execution import Execute, prepare_environment, run_all
from benchmarks.study.outcomes import Outcome, Records
from benchmarks.study.runs import Run
from benchmarks.study.showing import Display
from benchmarks.tables import Sheet, wide_console
from fedmoe.tracking.summary import git_commit

INTERRUPTED = 130
_FIRST_SEED = 10  # those before were looked at when the defaults were chosen
_RESAMPLES = 10_000
_QUIET = (
    "tracking.progress=none", "tracking.plots=false", "tracking.checkpoint_every=0",
    "tracking.log_level=ERROR", "training.device=cpu", "evaluate_every=1",
)  # fmt: skip
_NONE = "no policy"
_RATE_POLICIES = {
    _NONE: (),
    "step_size": ("meta_learner=step_size",),
    "hyperparameters": ("meta_learner=hyperparameters",),
    "hyperparameters, none larger": (
        "meta_learner=hyperparameters",
        "meta_learner.hyperparameters.learning_rates=[0.1,0.3,1.0]",
    ),
}
_SELECTIONS = {
    _NONE: (),
    "oort": ("meta_learner=selection",),
    "power_of_choice": ("meta_learner=selection", "meta_learner.selection.kind=power_of_choice"),
}
_HOW_TO_READ = """\
Rounds until the mean validation accuracy over all clients first reached the target: mean over
seeds and [95 % confidence interval], by bootstrap. *n of m* reached it at all; the others count as
one round more than they had. **Bold**: better than without a policy, and the intervals do not
overlap; ~~struck out~~: worse by the same rule. Seeds draw the data's division and the initial
weights, the same for every column. What the policies do: [docs/meta-learning.md]\
(../meta-learning.md)."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: what is run, and what is to be reached.

    Attributes:
        name: of the row.
        words: the experiment as fedmoe's command line says it.
        target: validation accuracy.
        rounds: at most.
        policies: words of each column.
    """

    name: str
    words: tuple[str, ...]
    target: float
    rounds: int
    policies: Mapping[str, tuple[str, ...]]

    def run(self, policy: str, seed: int) -> Run:
        """One run of a cell."""
        more = (f"rounds={self.rounds}", f"stopping.target={self.target}", f"seed={seed}")
        words = (*self.words, *self.policies[policy], *more, *_QUIET)
        return Run(setting=self.name, method=policy, configuration=(), words=words)

    def reached(self, outcome: Outcome) -> int:
        """The round in which a run reached the target, or one more than there are."""
        good = (point.round for point in outcome.course if point.validation >= self.target)
        return next(good, self.rounds + 1)


def _regime(name: str, *more: str) -> tuple[str, ...]:
    return (f"+experiment=regimes/{name}", "strategy=fedavg", *more)


_IID = _regime("iid")
_SKEWED = {a: _regime("dirichlet", f"partition.alpha={a}") for a in (0.05, 0.1, 0.5)}
_SYNTHETIC = _regime("near_iid")


def rate_cases() -> list[Case]:
    """Learning rates that are a tenth, once and ten times the default."""
    settings = [
        ("digits, iid", _IID, 0.85, 0.1),
        ("digits, Dirichlet 0.5", _SKEWED[0.5], 0.85, 0.1),
        ("digits, Dirichlet 0.1", _SKEWED[0.1], 0.80, 0.1),
        ("digits, permuted, `local`", (*_regime("permuted")[:1], "strategy=local"), 0.70, 0.1),
        ("synthetic, near iid", _SYNTHETIC, 0.65, 0.5),
    ]
    return [
        Case(
            name=f"{name}: {factor * usual:g}", target=target, rounds=60, policies=_RATE_POLICIES,
            words=(*words, f"training.learning_rate={factor * usual:g}"),
        )
        for name, words, target, usual in settings
        for factor in (0.1, 1.0, 10.0)
    ]  # fmt: skip


def selection_cases() -> list[Case]:
    """A tenth or a fifth of the clients in a round."""
    settings = [
        ("digits, iid", _IID, 0.85),
        ("digits, Dirichlet 0.5", _SKEWED[0.5], 0.85),
        ("digits, Dirichlet 0.1", _SKEWED[0.1], 0.80),
        ("digits, Dirichlet 0.05", _SKEWED[0.05], 0.75),
        ("digits, permuted, `ifca`", (*_regime("permuted")[:1], "strategy=ifca"), 0.70),
        ("synthetic, near iid", _SYNTHETIC, 0.65),
    ]
    return [
        Case(
            name=f"{name}: {share:g}", target=target, rounds=100, policies=_SELECTIONS,
            words=(*words, "training.learning_rate=0.1", f"strategy.fraction_train={share:g}"),
        )
        for name, words, target in settings
        for share in (0.1, 0.2)
    ]  # fmt: skip


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
        cells = [cell(rounds[policy], rounds[_NONE], case.rounds) for policy in policies]
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
    command = ["python", "benchmarks/policies.py", *(sys.argv[1:] if words is None else words)]
    write(options.out / "policies.md", tables, seeds, command)
    for table in tables:
        console.print(table.as_rich())
    return 0


def write(path: Path, tables: Sequence[Sheet], seeds: Sequence[int], command: list[str]) -> None:
    """The document."""
    made_by = f"fedmoe {fedmoe.__version__}, commit {git_commit() or 'unknown'}; {machine()}"
    named = ", ".join(map(str, seeds))
    sections = [
        f"## {table.title}\n\n{Sheet('', table.columns, table.rows).as_markdown().strip()}"
        for table in tables
    ]
    content = [
        "# What the MetaLearner's policies save", f"```\n{shlex.join(command)}\n```",
        f"{made_by}. Seeds {named}.", _HOW_TO_READ, verdict(tables), *sections,
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(content) + "\n", encoding="utf-8")


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Rounds to a target with and without policies.")
    parser.add_argument("--seeds", type=int, help="10")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--quick", action="store_true", help="few cases, three seeds")
    parser.add_argument("--out", type=Path, help="docs/results; runs/policies with --quick")
    parser.add_argument("--records", type=Path, default=Path("runs", "policies.jsonl"))
    options = parser.parse_args(words)
    options.seeds = options.seeds or (3 if options.quick else 10)
    if min(options.seeds, options.workers) < 1:
        parser.error("--seeds and --workers are from 1")
    try:
        prepare_environment(environment())
    except ValueError as error:
        parser.error(str(error))
    if options.out is None:
        options.out = Path("runs", "policies") if options.quick else Path("docs", "results")
    return options


if __name__ == "__main__":
    sys.exit(main())
