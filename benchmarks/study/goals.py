"""What fedmoe is to reach in the study, and whether it does."""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.study.comparison import Comparison, Lead
from benchmarks.study.methods import OURS
from benchmarks.study.reproduction import Agreement
from benchmarks.study.settings import SETTINGS

WITHIN, AHEAD_IN, PERMUTED, ALIVE = 0.01, 2, 0.95, 3
_JUDGED = ("synthetic", "digits")  # families in which fedmoe is to be within a point of the best
_MANY = 3  # groups from which on so many experts are to be alive


class Verdict(NamedTuple):
    """A goal, what was found, and whether that meets it; `None` if it was not looked at."""

    goal: str
    found: str
    met: bool | None


def verdicts(
    comparison: Comparison, agreements: Sequence[Agreement], method: str = OURS
) -> list[Verdict]:
    """All goals.

    Args:
        comparison: the results.
        agreements: with the published figures.
        method: whose; fedmoe, or a variant of it.
    """
    leads = {
        setting: lead
        for setting in comparison.plan.settings
        if (lead := comparison.lead(setting, method))
    }
    judged = {name: one for name, one in leads.items() if SETTINGS[name].family in _JUDGED}
    return [
        _within(judged),
        _ahead(leads),
        _permuted(comparison, method),
        _alive(comparison, method),
        _reproduced(agreements),
    ]


def _within(leads: dict[str, Lead]) -> Verdict:
    goal = f"within {100 * WITHIN:g} point of the best rival in every synthetic and digits setting"
    if not leads:
        return Verdict(goal, "not run", None)
    behind = {name: one.ahead for name, one in leads.items() if one.ahead < -WITHIN}
    told = ", ".join(f"{name} {100 * ahead:+.1f}" for name, ahead in behind.items())
    found = f"{len(leads) - len(behind)} of {len(leads)}" + (f"; not in {told}" if told else "")
    return Verdict(goal, found, not behind)


def _ahead(leads: dict[str, Lead]) -> Verdict:
    goal = f"ahead of the best rival in at least {AHEAD_IN} settings"
    ahead = [f"{name} {100 * one.ahead:+.1f}" for name, one in leads.items() if one.ahead > 0]
    found = f"{len(ahead)} of {len(leads)}" + (f": {', '.join(ahead)}" if ahead else "")
    return Verdict(goal, found, len(ahead) >= AHEAD_IN if leads else None)


def _permuted(comparison: Comparison, method: str) -> Verdict:
    goal = (
        f"permuted digits: {PERMUTED:.2f} or better, where fedavg is near 0.22 and local near 0.74"
    )
    means = {}
    for name in (method, "fedavg", "local"):
        result = comparison.results.get(("permuted", name))
        if result and result.accuracy:
            means[name] = result.accuracy.mean
    found = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
    return Verdict(goal, found or "not run", means[method] >= PERMUTED if method in means else None)


def _alive(comparison: Comparison, method: str) -> Verdict:
    goal = f"at least {ALIVE} experts alive where there are {_MANY} or more groups, in all seeds"
    counts = {
        setting: count
        for setting in comparison.plan.settings
        if SETTINGS[setting].groups >= _MANY and (setting, method) in comparison.results
        if (count := comparison.fewest_alive(setting, method)) is not None
    }
    found = ", ".join(f"{setting} {count}" for setting, count in counts.items())
    met = all(count >= ALIVE for count in counts.values()) if counts else None
    return Verdict(goal, found or "not known", met)


def _reproduced(agreements: Sequence[Agreement]) -> Verdict:
    goal = "fedem, ifca, fedavg and local agree with the published figures within two deviations"
    if not agreements:
        return Verdict(goal, "not run", None)
    apart = [
        f"{one.method} in {one.setting} {one.deviations:+.1f}"
        for one in agreements
        if abs(one.deviations) > 2
    ]
    found = f"{len(agreements) - len(apart)} of {len(agreements)}"
    return Verdict(goal, found + (f"; not {', '.join(apart)}" if apart else ""), not apart)
