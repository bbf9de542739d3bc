"""What the study leaves for readers: two documents and two pictures."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import fedmoe
from benchmarks.results import machine
from benchmarks.study.comparison import Comparison
from benchmarks.study.drawing import draw_bytes, draw_settings
from benchmarks.study.goals import verdicts
from benchmarks.study.methods import CONTROLS, METHODS, OURS
from benchmarks.study.reproduction import Agreement
from benchmarks.study.runs import Plan
from benchmarks.study.settings import FAMILIES
from benchmarks.study.sheets import (
    detail_sheet,
    family_sheet,
    reproduction_sheet,
    standing_sheet,
    verdict_sheet,
)
from benchmarks.tables import Sheet
from fedmoe.tracking.summary import git_commit

VARIANT = "fedmoe_untuned"
_HOW_TO_READ = """\
Accuracy is in percent on all clients' own test data after the last round, of the personalised
model where a method has one and of the global one elsewhere: mean ± standard deviation over
seeds. A seed draws the data, who gets which, and the initial weights, the same for every method.
In bold is the best of the strategies, in italics are controls. [docs/regimes.md](../regimes.md)
says what is run and how to read it; all else that was measured is in
[regimes_details.md](regimes_details.md)."""
_DETAILS = """\
# Which method for which clients: details

What [regimes.md](regimes.md) is made of, in percent but for bytes. *worst tenth* is the mean
over the worst tenth of the clients, *between clients* the deviation over clients, *best round by
validation* the accuracy in the round that was best on validation data. *global* and
*personalised* are the two models, where a method has them. Bytes are those of a client and round
of training, up and down, on average. *experts alive* is by seed, *lost by random routing* the
accuracy less that under random routing."""


def write_documents(
    out: Path,
    comparison: Comparison,
    agreements: Sequence[Agreement],
    reproduction_seeds: int,
    command: Sequence[str],
) -> list[Sheet]:
    """Write `regimes.md`, `regimes_details.md` and two PNGs.

    Returns:
        The tables for the console.
    """
    out.mkdir(parents=True, exist_ok=True)
    plan = comparison.plan
    goals = verdict_sheet("Goals", verdicts(comparison, agreements))
    variant = (
        [verdict_sheet(f"The same for {VARIANT}", verdicts(comparison, agreements, VARIANT))]
        if VARIANT in plan.methods
        else []
    )
    standing = standing_sheet(comparison, VARIANT)
    families = [
        family_sheet(comparison, family) for family in FAMILIES if comparison.settings_of(family)
    ]
    reproduction = [reproduction_sheet(agreements, reproduction_seeds)] if agreements else []
    draw_settings(comparison, out / "regimes.png")
    draw_bytes(comparison, out / "regimes_bytes.png")
    ours = OURS in plan.methods
    front = [goals, *variant, standing] if ours else []
    parts = [
        "# Which method for which clients", _HOW_TO_READ, *_provenance(plan, command),
        *_section("Where fedmoe stands", front), *_section("Accuracy", families),
        "![Accuracy over settings](regimes.png)", "![Accuracy over bytes](regimes_bytes.png)",
        *_controls(plan), *_section("The published first trial, with its settings", reproduction),
    ]  # fmt: skip
    (out / "regimes.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    details = [detail_sheet(comparison, setting) for setting in plan.settings]
    _write_details(out / "regimes_details.md", details)
    return [*front, *families, *reproduction]


def _provenance(plan: Plan, command: Sequence[str]) -> list[str]:
    cells = [(setting, name) for setting in plan.settings for name in plan.tuned]
    configurations = max((len(plan.candidates(*cell)) for cell in cells), default=0)
    tuning = (
        f"Tuned on validation data: {configurations} configurations of each method in each "
        f"setting, {_seeds(plan.tuning_seeds)}; they see other data than the table, which is of "
        f"{_seeds(plan.seeds)}. Not tuned: "
        f"{', '.join(n for n in plan.methods if not METHODS[n].is_tuned) or 'none'}."
    )
    made_by = f"fedmoe {fedmoe.__version__}, commit {git_commit() or 'unknown'}; {machine()}."
    return [f"```\n{shlex.join(command)}\n```", made_by, tuning]


def _seeds(seeds: Sequence[int]) -> str:
    word = "seed" if len(seeds) == 1 else "seeds"
    return f"{word} {', '.join(map(str, seeds))}"


def _section(title: str, sheets: Sequence[Sheet]) -> list[str]:
    return [f"## {title}", *(sheet.as_markdown().strip() for sheet in sheets)] if sheets else []


def _controls(plan: Plan) -> list[str]:
    lines = [f"- *{name}*: {why}." for name, why in CONTROLS.items() if name in plan.methods]
    return ["Controls:\n\n" + "\n".join(lines)] if lines else []


def _write_details(path: Path, sheets: Sequence[Sheet]) -> None:
    tables = (sheet.as_markdown().strip() for sheet in sheets)
    path.write_text("\n\n".join([_DETAILS, *tables]) + "\n", encoding="utf-8")
