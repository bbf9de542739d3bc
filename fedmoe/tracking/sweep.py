"""Reading the jobs of a sweep, and finding out in what they differ."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmoe.tracking.records import MEASURES, MODELS, Measure, Model, measure_of, stats_of
from fedmoe.tracking.run_directory import MARKER

# Hydra makes `.hydra` even for a job that fails before it has a run directory.
_SIGNS = ("summary.json", "config.json", MARKER, ".hydra")
_NOT_SETTINGS = ("name", "resume")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        settings: its configuration as `group.key: value`; empty if it has none.
        status: as in its summary; `failed` if it left none.
        reason: why it failed, else empty.
        summary: what is in `summary.json`; empty if there is none.
    """

    name: str
    settings: dict[str, Any]
    status: str
    reason: str = ""
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether it has no result."""
        return self.status == "failed"

    @property
    def finished(self) -> bool:
        """Whether it did all its rounds, or stopped early as configured."""
        return self.status == "completed" or self.status.startswith("stopped")

    @property
    def measure(self) -> Measure | None:
        """Accuracy or mse; `None` if nothing was evaluated."""
        return measure_of(self.summary.get("final"))

    def score(self, model: Model, measure: Measure, key: str) -> float | None:
        """One statistic of the last evaluated round, or `None` where there is none."""
        stats = stats_of(self.summary.get("final"), model, measure)
        return stats[key] if stats else None


@dataclass(frozen=True, kw_only=True)
class SeedGroup:
    """Jobs that differ by nothing but their seed.

    Attributes:
        settings: the differing settings that they share.
        jobs: at least one; all of them finished.
    """

    settings: dict[str, Any]
    jobs: list[Job]

    def score(self, model: Model, measure: Measure, key: str) -> tuple[float, float] | None:
        """Mean and sample standard deviation over the seeds (NaN for one seed).

        `None` if a job lacks the statistic, or it was not finite.
        """
        scores = [job.score(model, measure, key) for job in self.jobs]
        numbers = [score for score in scores if score is not None]
        if len(numbers) < len(scores):
            return None
        deviation = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
        return statistics.fmean(numbers), deviation

    def scores(self) -> list[dict[str, Any]]:
        """Every statistic of every model over the seeds, as `sweep.json` holds them."""
        found = []
        for measure, model in measured(self.jobs):
            for key in ("mean", "worst_decile"):
                mean, deviation = self.score(model, measure, key) or (math.nan, math.nan)
                what = {"model": model, "measure": measure, "statistic": key}
                found.append(what | {"mean": mean, "std": deviation})
        return found


def collect_jobs(sweep_dir: Path) -> list[Job]:
    """The jobs in the subfolders of a sweep directory, numbered ones in order of number."""
    folders = [
        folder
        for folder in sweep_dir.iterdir()
        if folder.is_dir() and any((folder / sign).exists() for sign in _SIGNS)
    ]
    return [_read_job(folder) for folder in sorted(folders, key=_by_number)]


def differing_settings(jobs: Sequence[Job]) -> list[str]:
    """The settings in which the jobs differ, without `name` and `resume`.

    What follows from a differing choice (`strategy.proximal_mu` from `strategy.name`) is left
    out, unless jobs of the same choice differ in it.
    """
    configured = [job.settings for job in jobs if job.settings]
    keys = sorted({key for settings in configured for key in settings} - set(_NOT_SETTINGS))
    differing = [key for key in keys if len({_text(settings, key) for settings in configured}) > 1]
    return [key for key in differing if not _follows_from_choice(key, differing, configured)]


def measured(jobs: Sequence[Job]) -> list[tuple[Measure, Model]]:
    """What any of the jobs measured in its last evaluated round, and on which model."""
    return [
        (measure, model)
        for measure in MEASURES
        for model in MODELS
        if any(stats_of(job.summary.get("final"), model, measure) for job in jobs)
    ]


def over_seeds(jobs: Sequence[Job], settings: Sequence[str]) -> list[SeedGroup]:
    """Group the finished jobs by all differing settings but the seed.

    Returns:
        The groups, in order of their first job; none if no two jobs differ only by seed.
    """
    others = [key for key in settings if key != "seed"]
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        if job.finished and job.measure:
            groups.setdefault(tuple(_text(job.settings, key) for key in others), []).append(job)
    if "seed" not in settings or all(len(group) < 2 for group in groups.values()):
        return []
    return [
        SeedGroup(
            settings={key: group[0].settings[key] for key in others if key in group[0].settings},
            jobs=group,
        )
        for group in groups.values()
    ]


def read_summary(path: Path) -> dict[str, Any]:
    """Read a JSON object, such as `summary.json`.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is not a JSON object.
    """
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _read_job(folder: Path) -> Job:
    try:
        settings = _flatten(read_summary(folder / "config.json"))
    except (OSError, ValueError):
        settings = {}
    try:
        summary = read_summary(folder / "summary.json")
    except OSError:
        reason = "no summary.json: it failed before its first round, was killed, or still runs"
        return Job(name=folder.name, settings=settings, status="failed", reason=reason)
    except ValueError as error:
        reason = f"damaged summary.json: {error}"
        return Job(name=folder.name, settings=settings, status="failed", reason=reason)
    status = str(summary.get("status", "failed"))
    if not status.startswith("failed"):
        return Job(name=folder.name, settings=settings, status=status, summary=summary)
    told = summary.get("reason") or status.removeprefix("failed").lstrip(": ")
    reason = str(told or "see its log")
    return Job(name=folder.name, settings=settings, status="failed", reason=reason, summary=summary)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _text(settings: Mapping[str, Any], key: str) -> str:
    """A value that can be compared and hashed; a missing key differs from every value."""
    return json.dumps(settings[key], sort_keys=True) if key in settings else ""


def _follows_from_choice(
    key: str, differing: Sequence[str], configured: Sequence[Mapping[str, Any]]
) -> bool:
    choice = f"{key.rpartition('.')[0]}.name"
    if key == choice or choice not in differing:
        return False
    pairs = {(_text(settings, choice), _text(settings, key)) for settings in configured}
    return len(pairs) == len({name for name, _ in pairs})


def _by_number(folder: Path) -> tuple[bool, int, str]:
    digits = folder.name.partition("-")[0]
    return (not digits.isdecimal(), int(digits) if digits.isdecimal() else 0, folder.name)
