"""The insight study's document: what is judged, tables of quality and bytes, and the plot."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import fedmoe
from benchmarks.results import machine
from benchmarks.study.comparison import Comparison, Result, Spread
from benchmarks.study.haste import haste_sheet
from benchmarks.study.levels import BEST_LEVEL, PLENTY
from benchmarks.study.outcomes import Records
from benchmarks.study.pareto import draw_pareto
from benchmarks.study.runs import Run
from benchmarks.study.settings import Family
from benchmarks.tables import Sheet
from fedmoe.tracking.summary import git_commit

_MOST_BYTES = 0.05  # of FedAvg's
_LEVEL_WITH = 0.005  # what counts as FedAvg's level, and as no worse than local
_HOW_TO_READ = """\
Accuracy in percent on all clients' own test data after the last round, of the personalised model
where a method has one and of the global one elsewhere; for `related` the mean squared error. Mean
± standard deviation over seeds, which draw data, division and initial weights, the same for every
method. **Bold**: the best. Bytes are those of a client and round of training, up and down
together, on average over the run. Three learning rates of each method are tried in each setting on
seed 100 and one is chosen by validation accuracy (`fedproto`: for two strengths each); `related`
runs as configured. What the levels and policies are: [docs/insight.md](../insight.md),
[docs/meta-learning.md](../meta-learning.md)."""
_HASTE = """\
`+experiment=regimes/permuted`, learning rate 0.5, ten seeds: rounds until the mean test accuracy of
the clients first reached the target, median (by seed; - where it never did in 100 rounds)."""


def write_worth(
    out: Path,
    found: Mapping[Family, Comparison],
    hasty: Mapping[str, Sequence[Run]],
    records: Records,
    command: Sequence[str],
) -> list[Sheet]:
    """Write `insight.md` and `insight.png`.

    Returns:
        The tables for the console.
    """
    out.mkdir(parents=True, exist_ok=True)
    judged = Sheet("", ["what is judged", "figures", "met"], list(_verdicts(found)))
    quality = {family: quality_sheet(comparison) for family, comparison in found.items()}
    sizes = {family: bytes_sheet(comparison) for family, comparison in found.items()}
    haste = haste_sheet(hasty, records) if hasty else None
    draw_pareto(found, out / "insight.png")
    plan = next(iter(found.values())).plan
    made_by = f"fedmoe {fedmoe.__version__}, commit {git_commit() or 'unknown'}; {machine()}."
    parts = [
        "# What insight exchange is worth", _HOW_TO_READ, f"```\n{shlex.join(command)}\n```",
        f"{made_by} Seeds {', '.join(map(str, plan.seeds))}.", judged.as_markdown().strip(),
        "![Quality over bytes](insight.png)",
    ]  # fmt: skip
    for family in found:
        parts += [f"## {family}: {'mean squared error' if family == 'linear' else 'accuracy, %'}"]
        parts += [quality[family].as_markdown().strip()]
        parts += [f"## {family}: bytes of a client and round", sizes[family].as_markdown().strip()]
    if haste is not None:
        parts += ["## Rounds that fedmoe needs", _HASTE, haste.as_markdown().strip()]
    (out / "insight.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [judged, *quality.values(), *sizes.values(), *([haste] if haste else [])]


def quality_sheet(comparison: Comparison) -> Sheet:
    """A row per method, a column per setting."""
    plan, linear = comparison.plan, _is_linear(comparison)
    best = {}
    for setting in plan.settings:
        scores = {n: comparison.results[setting, n].accuracy for n in plan.methods}
        known = {n: score.mean for n, score in scores.items() if score}
        best[setting] = (min if linear else max)(known, key=lambda n: known[n]) if known else None
    rows = []
    for name in plan.methods:
        cells = [
            _score(comparison.results[setting, name].accuracy, best[setting] == name, linear)
            for setting in plan.settings
        ]
        rows.append([name, *cells])
    return Sheet("", ["", *plan.settings], rows)


def _score(score: Spread | None, best: bool, linear: bool) -> str:
    if score is None:
        return "failed"
    mark = "**" if best else ""
    mean, std = (score.mean, score.std) if linear else (100 * score.mean, 100 * score.std)
    digits = 3 if linear else 1
    return f"{mark}{mean:.{digits}f}{mark} ± {std:.{digits}f}"


def bytes_sheet(comparison: Comparison) -> Sheet:
    """The same of bytes, and their share of FedAvg's."""
    plan, rows = comparison.plan, []
    for name in plan.methods:
        cells = []
        for setting in plan.settings:
            own, share = (
                bytes_of(comparison.results[setting, name]),
                _share(comparison, setting, name),
            )
            cells.append(f"{own:,.0f}" + ("" if share is None else f" ({share:.1%})"))
        rows.append([name, *cells])
    return Sheet("", ["", *plan.settings], rows)


def bytes_of(result: Result) -> float:
    """Up and down, of a client and round."""
    return fmean(outcome.up + outcome.down for outcome in result.outcomes)


def _share(comparison: Comparison, setting: str, name: str) -> float | None:
    if "fedavg" not in comparison.plan.methods:
        return None
    whole = bytes_of(comparison.results[setting, "fedavg"])
    return bytes_of(comparison.results[setting, name]) / whole if whole else None


def _is_linear(comparison: Comparison) -> bool:
    return comparison.settings_of("linear") == list(comparison.plan.settings)


def _verdicts(found: Mapping[Family, Comparison]) -> Iterator[list[str]]:
    """A row for each thing that is judged, of what has been run."""
    if linear := found.get("linear"):
        yield from _related(linear)
    for family in ("digits", "mnist5k"):
        if comparison := found.get(family):
            yield from _skewed(family, comparison)
            yield from _against_local(family, comparison)


def _related(comparison: Comparison) -> Iterator[list[str]]:
    if not {"local", "fedavg", "prior"} <= set(comparison.plan.methods):
        return
    for setting in comparison.plan.settings:
        local, pooled, own = (
            _mean(comparison, setting, name) for name in ("local", "fedavg", "prior")
        )
        strictly = not setting.endswith("=0")
        wanted = "better than local and pooled" if strictly else "no worse than either"
        met = own < min(local, pooled) if strictly else own <= min(local, pooled)
        figures = f"local {local:.3f}, pooled {pooled:.3f}, prior {own:.3f}"
        yield [f"{setting}: {wanted}", figures, _yes(met)]


def _skewed(family: str, comparison: Comparison) -> Iterator[list[str]]:
    """Under label skew and other names: FedAvg's level at a twentieth of its bytes."""
    rivals = [n for n in ("fedavg", "fedavg_finetune") if n in comparison.plan.methods]
    if BEST_LEVEL not in comparison.plan.methods or "fedavg" not in rivals:
        return
    for setting in comparison.plan.settings:
        if not setting.removeprefix("mnist5k_").startswith(("dirichlet", "permuted")):
            continue
        own = _mean(comparison, setting, BEST_LEVEL)
        others = {name: _mean(comparison, setting, name) for name in rivals}
        share = _share(comparison, setting, BEST_LEVEL) or 0.0
        figures = f"{100 * own:.1f}; " + ", ".join(
            f"{name} {100 * score:.1f}" for name, score in others.items()
        )
        met = own >= max(others.values()) - _LEVEL_WITH and share <= _MOST_BYTES
        yield [
            f"{family}, {setting}: FedAvg's level for 5 % of its bytes",
            f"{figures}; bytes {share:.1%}", _yes(met),
        ]  # fmt: skip


def _against_local(family: str, comparison: Comparison) -> Iterator[list[str]]:
    if not {BEST_LEVEL, "local"} <= set(comparison.plan.methods):
        return
    gains = {
        setting: _mean(comparison, setting, BEST_LEVEL) - _mean(comparison, setting, "local")
        for setting in comparison.plan.settings
    }
    met = all(
        gain > (-_LEVEL_WITH if setting == PLENTY.name else 0) for setting, gain in gains.items()
    )
    figures = ", ".join(f"{setting} {100 * gain:+.1f}" for setting, gain in gains.items())
    yield [f"{family}: ahead of local everywhere", figures, _yes(met)]


def _mean(comparison: Comparison, setting: str, name: str) -> float:
    score = comparison.results[setting, name].accuracy
    return score.mean if score else math.nan


def _yes(met: bool) -> str:
    return "yes" if met else "no"
