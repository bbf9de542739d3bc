"""The study's tables."""

import math
from collections.abc import Sequence

from benchmarks.study.comparison import Comparison, Lead, Result, Spread
from benchmarks.study.goals import Verdict
from benchmarks.study.methods import METHODS, OURS
from benchmarks.study.outcomes import Score
from benchmarks.study.reproduction import Agreement
from benchmarks.study.settings import Family
from benchmarks.tables import Sheet

NOTHING = ""
FAILED = "failed"
_MET = {True: "yes", False: "**no**", None: "?"}


def percent(spread: Spread | None) -> str:
    """A mean and its deviation over seeds, in percent."""
    if spread is None:
        return FAILED
    deviation = NOTHING if math.isnan(spread.std) else f" ± {100 * spread.std:.1f}"
    return f"{100 * spread.mean:.1f}{deviation}"


def family_sheet(comparison: Comparison, family: Family) -> Sheet:
    """Accuracy of each method in each setting; the best of strategies and ours is bold."""
    settings, plan = comparison.settings_of(family), comparison.plan
    contenders = [name for name in plan.methods if METHODS[name].role != "control"]
    best = {setting: comparison.best(setting, contenders) for setting in settings}
    rows = []
    for name in plan.methods:
        row = [_shown(name)]
        for setting in settings:
            text = percent(comparison.results[setting, name].accuracy)
            row.append(f"**{text}**" if best[setting] == name else text)
        rows.append(row)
    return Sheet(f"{family}: accuracy in %", ["", *settings], rows)


def standing_sheet(comparison: Comparison, variant: str) -> Sheet:
    """For each setting: the best rival, ours, and how far ours is ahead.

    Args:
        comparison: the results.
        variant: of ours, shown beside it if it is in the plan.
    """
    rows = []
    for setting in comparison.plan.settings:
        lead, other = comparison.lead(setting), comparison.lead(setting, variant)
        if lead is None:
            rows.append([setting, FAILED, *[NOTHING] * 5])
            continue
        alive = comparison.fewest_alive(setting)
        rows.append(
            [
                setting, lead.rival, f"{100 * lead.rival_mean:.1f}", f"{100 * lead.mean:.1f}",
                _ahead(lead), _ahead(other) if other else NOTHING,
                NOTHING if alive is None else str(alive),
            ]
        )  # fmt: skip
    columns = [
        "", "best rival", "its accuracy", OURS, "ahead by", f"{variant} ahead by",
        "fewest experts alive",
    ]  # fmt: skip
    return Sheet("Points ahead of the best rival (± standard error over seeds)", columns, rows)


def verdict_sheet(title: str, found: Sequence[Verdict]) -> Sheet:
    """The goals."""
    rows = [[one.goal, one.found, _MET[one.met]] for one in found]
    return Sheet(title, ["goal", "found", "met"], rows)


def reproduction_sheet(agreements: Sequence[Agreement], seeds: int) -> Sheet:
    """The published figures and ours."""
    rows = [
        [
            one.setting, one.method, percent(one.published), percent(one.ours),
            f"{one.deviations:+.1f}", f"{one.published_deviations:+.1f}",
        ]
        for one in agreements
    ]  # fmt: skip
    columns = [
        "", "method", "published, 3 seeds", f"ours, {seeds} seeds",
        "apart, in deviations of both", "in the published deviation",
    ]  # fmt: skip
    return Sheet("Accuracy in %, and how far apart", columns, rows)


def detail_sheet(comparison: Comparison, setting: str) -> Sheet:
    """All that is known of each method in one setting."""
    columns = [
        "", "accuracy", "worst tenth", "between clients", "best round by validation", "global",
        "personalised", "B up", "B down", "experts alive", "lost by random routing",
        "configuration",
    ]  # fmt: skip
    rows = []
    for name in comparison.plan.methods:
        result = comparison.results[setting, name]
        if result.accuracies is None:
            failures = [one.reason for one in result.outcomes if one.reason]
            reason = f"{FAILED}: {failures[0]}" if failures else FAILED
            rows.append([_shown(name), reason, *[NOTHING] * (len(columns) - 3), _words(result)])
        else:
            rows.append([_shown(name), *_detail(result), _words(result)])
    return Sheet(f"## {setting}", columns, rows)


def _detail(result: Result) -> list[str]:
    own = [one.own for one in result.outcomes]
    best = [one.own_best for one in result.outcomes]
    alive = [str(one.alive) for one in result.outcomes if one.alive is not None]
    lost = [(one.routing or {}).get("necessity") for one in result.outcomes]
    known = [value for value in lost if value is not None]
    return [
        percent(result.accuracy),
        _mean([one.worst for one in own if one]),
        _mean([one.std for one in own if one]),
        percent(Spread.of([one.mean for one in best if one])) if all(best) else NOTHING,
        *(_which(result, which) for which in ("global", "personalised")),
        *(f"{sum(bytes_) / len(bytes_):,.0f}" for bytes_ in _traffic(result)),
        " ".join(alive),
        _mean(known) if known else NOTHING,
    ]


def _traffic(result: Result) -> tuple[list[float], list[float]]:
    return [one.up for one in result.outcomes], [one.down for one in result.outcomes]


def _which(result: Result, which: str) -> str:
    """One of the two models; empty where there is none."""
    scores: list[Score] = [one.last[which] for one in result.outcomes if which in one.last]
    whole = len(scores) == len(result.outcomes)
    return percent(Spread.of([score.mean for score in scores])) if whole else NOTHING


def _mean(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f}"


def _ahead(lead: Lead) -> str:
    error = NOTHING if math.isnan(lead.error) else f" ± {100 * lead.error:.1f}"
    return f"{100 * lead.ahead:+.1f}{error}"


def _shown(method: str) -> str:
    """Controls are in italics."""
    return f"*{method}*" if METHODS[method].role == "control" else method


def _words(result: Result) -> str:
    """Configurations without the names of their groups."""
    pairs = [word.partition("=") for word in result.configuration]
    return ", ".join(f"{key.rpartition('.')[2]}={value}" for key, _, value in pairs)
