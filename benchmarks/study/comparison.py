"""The outcomes side by side: who is best where, by how much, and whether the goals are met."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from benchmarks.study.methods import METHODS, OURS, Words
from benchmarks.study.outcomes import Outcome, Records
from benchmarks.study.runs import Cell, Plan
from benchmarks.study.settings import Family


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds; NaN for the deviation of one."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else math.nan)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A method in a setting, over the seeds.

    Attributes:
        outcomes: one for each seed, in order of seed.
        configuration: what it was run with.
    """

    outcomes: Sequence[Outcome]
    configuration: Words

    @property
    def accuracies(self) -> list[float] | None:
        """Of the method's own model after the last round, by seed; `None` if a run failed."""
        scores = [outcome.own for outcome in self.outcomes]
        whole = [score.mean for score in scores if score is not None]
        return whole if len(whole) == len(scores) else None

    @property
    def accuracy(self) -> Spread | None:
        """The same over the seeds."""
        return Spread.of(self.accuracies) if self.accuracies else None


class Lead(NamedTuple):
    """How far a method is ahead of the best of the others; all in accuracy.

    Attributes:
        rival: the best of the others.
        rival_mean: its mean.
        mean: of the method.
        ahead: by how much it is better on average; below 0 where it is behind.
        error: standard error of `ahead`, from the differences seed by seed.
    """

    rival: str
    rival_mean: float
    mean: float
    ahead: float
    error: float


@dataclass(frozen=True)
class Comparison:
    """All results.

    Attributes:
        plan: what was compared.
        results: by setting and method.
    """

    plan: Plan
    results: Mapping[Cell, Result]

    @classmethod
    def of(cls, plan: Plan, chosen: Mapping[Cell, Words], records: Records) -> "Comparison":
        """Gather the table's runs, all of which have finished."""
        outcomes: dict[Cell, list[Outcome]] = {}
        for run in plan.table_runs(chosen):
            outcomes.setdefault((run.setting, run.method), []).append(records[run])
        return cls(
            plan,
            {
                cell: Result(outcomes=own, configuration=plan.configuration_of(*cell, chosen))
                for cell, own in outcomes.items()
            },
        )

    def settings_of(self, family: Family) -> list[str]:
        """Those of the plan."""
        return [
            name for name in self.plan.settings if self.plan.settings_by_name[name].family == family
        ]

    def rivals(self) -> list[str]:
        """The methods that ours is compared with: no controls."""
        return [name for name in self.plan.methods if METHODS[name].role == "strategy"]

    def best(self, setting: str, methods: Iterable[str]) -> str | None:
        """Who of the methods has the highest mean; `None` where all failed."""
        found = {name: self.results[setting, name].accuracy for name in methods}
        means = {name: spread.mean for name, spread in found.items() if spread}
        return max(means, key=lambda name: means[name]) if means else None

    def lead(self, setting: str, method: str = OURS) -> Lead | None:
        """How far a method is ahead of the best rival; `None` where one of them failed."""
        rival = self.best(setting, self.rivals())
        if rival is None or method not in self.plan.methods:
            return None
        own, other = (self.results[setting, name].accuracies for name in (method, rival))
        if own is None or other is None:
            return None
        ahead = Spread.of([a - b for a, b in zip(own, other, strict=True)])
        return Lead(rival, fmean(other), fmean(own), ahead.mean, ahead.std / math.sqrt(len(own)))

    def fewest_alive(self, setting: str, method: str = OURS) -> int | None:
        """Experts that do something, in the seed with the fewest; `None` where it is not known."""
        counts = [outcome.alive for outcome in self.results[setting, method].outcomes]
        known = [count for count in counts if count is not None]
        return min(known) if known and len(known) == len(counts) else None
