"""What a tenth of the clients does to the others by lying in one field of what they tell.

    python benchmarks/poisoning.py [--seeds 5] [--cases NAME ...] [--out docs/results]

Each row is a field and a lie: the honest clients' score less that without the lie, with the
policies' limits and without them (what the guard refuses is refused in both), and how many of the
liars were named in the run directory. Leaves poisoning.md under --out.
"""

import argparse
import io
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a script, from anywhere

import numpy as np

from benchmarks.lies import LIES, Consequences, lied, undefended
from benchmarks.tables import Sheet, wide_console
from fedmoe.messages import words

_QUIET = (
    "tracking.plots=false", "tracking.progress=none", "tracking.log_level=ERROR",
    "tracking.checkpoint_every=0", "training.num_threads=1", "evaluate_every=5",
)  # fmt: skip
_SIZES = ("x 1.5", "x 10", "x 10^4", "zero", "sign", "noise", "replay", "swap")
_NUMBERS = ("x 10", "x 10^4", "zero", "largest")
_GAUSSIANS = (
    "gaussian_count", "gaussian_sum", "gaussian_totals", "gaussian_products", "spread_products",
)  # fmt: skip
_CLASSES = ("prototype_sum", "prototype_count", "class_trace")
_DIRICHLET = ("+experiment=regimes/dirichlet",)
_HOW_TO_READ = """\
4 of 40 clients (3 of 30 on the linear task) lie in one field, alike in all rounds; the others'
score on their test data, mean over samples, seeds and the last half of the evaluations, less that
without the lie, in points of accuracy, or in per cent of the mean squared error (above 0 is
better). *Named*: liars in `findings.jsonl` under `suspects` or refused in `clients.jsonl`, of all.
*Accused*: honest clients under `suspects`, of all. Without limits, the guard still stands."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Runs of one strategy on one kind of clients.

    Attributes:
        name: of the table.
        overrides: the experiment.
        score: name of the metric.
        fields: what is lied in, by key of the record.
        lies: names of the lies.
        clients: how many there are.
    """

    name: str
    overrides: tuple[str, ...]
    score: str = "personalised-accuracy"
    fields: tuple[str, ...] = _CLASSES
    key: str = words.PAYLOAD
    lies: tuple[str, ...] = _SIZES
    clients: int = 40

    def run(self, seed: int, field: str = "", lie: str | None = None) -> Consequences:
        """One run; the liars are drawn by the seed."""
        rng = np.random.default_rng(seed)
        liars = rng.choice(self.clients, self.clients // 10, replace=False).tolist()
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            return lied(
                Path(folder, "run"), [*self.overrides, *_QUIET, f"seed={seed}"], self.score, liars,
                self.key, field, None if lie is None else LIES[lie],
            )  # fmt: skip


def _policy(name: str, fields: tuple[str, ...], *more: str, score: str = "global") -> Case:
    strategy = "fedavg" if score == "global" else "local"
    return Case(
        name=name, score=f"{score}-accuracy", fields=fields, key=words.INSIGHT, lies=_NUMBERS,
        overrides=(*_DIRICHLET, "partition.alpha=0.1", f"strategy={strategy}", *more),
    )  # fmt: skip


_RELATED = ("+experiment=related",)
_STATISTICS = ("statistics_xx", "statistics_xy", "statistics_yy")
CASES = [
    *(
        Case(name=f"insight, {name}", overrides=(*regime, "strategy=insight", "rounds=30"))
        for name, regime in {
            "Dirichlet 0.1": (*_DIRICHLET, "partition.alpha=0.1"),
            "Dirichlet 0.5": (*_DIRICHLET, "partition.alpha=0.5"),
            "permuted labels": ("+experiment=regimes/permuted",),
        }.items()
    ),
    *(
        Case(
            name=f"gaussians, {name}", fields=_GAUSSIANS,
            overrides=(*regime, "strategy=insight", "meta_learner=gaussians", "rounds=30"),
        )
        for name, regime in {
            "Dirichlet 0.1": (*_DIRICHLET, "partition.alpha=0.1"),
            "permuted labels": ("+experiment=regimes/permuted",),
        }.items()
    ),
    *(
        Case(
            name=f"insight, linear, tau {tau}", overrides=(*_RELATED, f"data.deviation={tau}"),
            score="personalised-mse", fields=_STATISTICS, clients=30,
        )
        for tau in (0.0, 0.3, 1.0)
    ),
    Case(
        name="fedmoe with expert_assignment, permuted labels", lies=("x 10", "sign", "swap"),
        overrides=(
            "+experiment=regimes/permuted", "meta_learner=expert_assignment", "rounds=30"
        ),
    ),
    Case(
        name="fedmoe, permuted labels: losses by strength", key=words.STRENGTHS,
        fields=("loss", "examples"), lies=("first", "last", "x 10^4"),
        overrides=("+experiment=regimes/permuted", "rounds=30"),
    ),
    _policy(
        "step_size, Dirichlet 0.1", ("steps", "distance", "mean_grad", "std_grad"),
        "meta_learner=step_size", "training.learning_rate=0.05", "rounds=30",
    ),
    _policy(
        "hyperparameters, Dirichlet 0.1", ("validation_loss", "validation_examples"),
        "meta_learner=hyperparameters", "training.learning_rate=0.05", "rounds=30",
        score="personalised",
    ),
    _policy(
        "selection (oort), Dirichlet 0.1", ("num_examples", "final_loss", "loss_improvement"),
        "meta_learner=selection", "strategy.fraction_train=0.1", "training.learning_rate=0.1",
        "rounds=60",
    ),
]  # fmt: skip


def sheet(case: Case, seeds: Sequence[int]) -> Sheet:
    """A row for each field and lie."""
    truth = [case.run(seed) for seed in seeds]
    honest = float(np.mean([one.score for one in truth]))
    everyone = len(seeds) * case.clients
    accused = sum(one.accused + one.named for one in truth)
    rows = [["the truth", "", f"{honest:.3f}", "", "", f"{accused} of {everyone}"]]
    for field in case.fields:
        for lie in case.lies:
            found = [case.run(seed, field, lie) for seed in seeds]
            with undefended():
                bare = [case.run(seed, field, lie) for seed in seeds]
            rows.append([f"`{field}`", lie, *_cells(case, honest, found, bare)])
    return Sheet(case.name, ["field", "lie", "score", "without limits", "named", "accused"], rows)


def _cells(
    case: Case, honest: float, found: Sequence[Consequences], bare: Sequence[Consequences]
) -> list[str]:
    if bad := [one.status for one in found if one.status != "completed"]:
        raise RuntimeError(f"{case.name}: a lie ended a run ({bad[0]})")
    liars = len(found) * (case.clients // 10)
    others = len(found) * case.clients - liars
    return [
        _change(case, honest, found), _change(case, honest, bare),
        f"{sum(one.named for one in found)} of {liars}",
        f"{sum(one.accused + one.refused for one in found)} of {others}",
    ]  # fmt: skip


def _change(case: Case, honest: float, found: Sequence[Consequences]) -> str:
    score = float(np.mean([one.score for one in found]))
    change = 1 - score / honest if case.score.endswith("mse") else score - honest
    return f"{100 * change:+.1f}" if abs(change) < 100 else "diverged"


def main(given: Sequence[str] | None = None) -> int:
    """Run everything, and write it up."""
    parser = argparse.ArgumentParser(description="Clients that lie in one field.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="beginnings of names")
    parser.add_argument("--out", type=Path, default=Path("docs", "results"))
    options = parser.parse_args(given)
    chosen = [
        one for one in CASES
        if not options.cases or any(one.name.startswith(name) for name in options.cases)
    ]  # fmt: skip
    console, sections = wide_console(), []
    command = ["python", "benchmarks/poisoning.py", *(sys.argv[1:] if given is None else given)]
    options.out.mkdir(parents=True, exist_ok=True)
    for case in chosen:
        table = sheet(case, range(options.seeds))
        console.print(table.as_rich())
        own = f"`{' '.join(case.overrides)}`"
        body = Sheet("", table.columns, table.rows).as_markdown().strip()
        sections.append(f"## {case.name}\n\n{own}\n\n{body}")
        content = ["# Clients that lie", f"```\n{shlex.join(command)}\n```", _HOW_TO_READ]
        text = "\n\n".join([*content, *sections]) + "\n"
        (options.out / "poisoning.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
