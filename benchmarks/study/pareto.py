"""Quality against bytes: a point for each method, and the line of those that nobody beats."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.study.comparison import Comparison
from benchmarks.study.levels import ABLATIONS, LEVELS, REFERENCES
from benchmarks.study.settings import Family
from fedmoe.tracking.style import BLUE, GREEN, GREY, ORANGE, tidy

Points = Mapping[str, tuple[float, float]]
_COLUMNS = 2
_NOTHING = 1.0  # bytes of a method that sends none, on a logarithmic axis


def draw_pareto(found: Mapping[Family, Comparison], path: Path) -> None:
    """A panel for each kind of clients: means over its settings."""
    panels = {
        title: (points_of(comparison, settings), comparison.plan.settings[0].startswith("related"))
        for comparison in found.values()
        for title, settings in _kinds(comparison).items()
    }
    rows = math.ceil(len(panels) / _COLUMNS)
    figure = Figure(figsize=(13, 5 * rows), layout="constrained")
    every = figure.subplots(rows, _COLUMNS, squeeze=False).flatten().tolist()
    for axes, (title, (points, is_error)) in zip(every, panels.items(), strict=False):
        _draw(axes, points, is_error)
        axes.set_title(title, loc="left")
    for axes in every[len(panels) :]:
        axes.axis("off")
    figure.savefig(path, dpi=110)


def _kinds(comparison: Comparison) -> dict[str, list[str]]:
    """Settings that make one panel."""
    kinds: dict[str, list[str]] = {}
    for name in comparison.plan.settings:
        family = comparison.plan.settings_by_name[name].family
        bare = name.removeprefix("mnist5k_").partition("=")[0]
        kind = {
            "dirichlet": "label skew", "permuted": "other names or turned, by group",
            "rotated": "other names or turned, by group", "related": name,
        }.get(bare, "alike" if bare.startswith("iid") else "mixed")  # fmt: skip
        kinds.setdefault(f"{family}: {kind}", []).append(name)
    return kinds


def points_of(comparison: Comparison, settings: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Bytes of a client and round, and accuracy in % or error; those that never failed."""
    points = {}
    for name in comparison.plan.methods:
        results = [comparison.results[setting, name] for setting in settings]
        scores = [result.accuracy for result in results]
        if any(score is None for score in scores):
            continue
        sent = fmean(o.up + o.down for result in results for o in result.outcomes)
        mean = fmean(score.mean for score in scores if score)
        is_error = comparison.plan.settings_by_name[settings[0]].family == "linear"
        points[name] = (max(sent, _NOTHING), mean if is_error else 100 * mean)
    return points


def unbeaten(points: Points, is_error: bool) -> list[str]:
    """The methods of which no other has better quality for as few bytes, from the cheapest."""
    worth = {name: -score if is_error else score for name, (_, score) in points.items()}
    front: list[str] = []
    for name in sorted(points, key=lambda one: (points[one][0], -worth[one])):
        if not front or worth[name] > worth[front[-1]]:
            front.append(name)
    return front


def _draw(axes: Axes, points: Points, is_error: bool) -> None:
    front = unbeaten(points, is_error)
    axes.plot(*zip(*(points[name] for name in front), strict=True), "-", color="0.8", zorder=1)
    for name, (sent, score) in points.items():
        axes.plot(sent, score, "o", color=_colour(name), markersize=7 if name in front else 5)
        axes.annotate(
            name, (sent, score), (5, 4), textcoords="offset points", fontsize=7,
            color=_colour(name), fontweight="bold" if name in front else "normal",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("bytes of a client and round")
    axes.set_ylabel("mean squared error" if is_error else "accuracy, %")
    tidy(axes)


def _colour(name: str) -> str:
    """References orange, levels blue, combinations of policies green."""
    for colour, methods in ((ORANGE, REFERENCES), (BLUE, LEVELS), (GREEN, ABLATIONS)):
        if any(method.name == name for method in methods):
            return str(colour)
    return BLUE if name == "prior" else str(GREY)
