"""Quality against bytes: a point for each method, and the line of those that nobody beats."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.study.comparison import Comparison
from benchmarks.study.drawing import name_points, stretch
from benchmarks.study.levels import LEVELS, LINEAR, REFERENCES
from benchmarks.study.settings import Family
from fedmoe.tracking.style import BLUE, GREEN, ORANGE, tidy

Points = Mapping[str, tuple[float, float]]
_COLUMNS = 2
_HELPED = ("fedmoe, expert_assignment, gaussians", "fedavg, gaussians")
# Strategies that send weights, levels of insight alone, and strategies helped by insights. The
# other combinations are in the tables.
_COLOURS: dict[str, str] = {
    **dict.fromkeys((method.name for method in REFERENCES), ORANGE),
    **dict.fromkeys((method.name for method in [*LEVELS, *LINEAR[-2:]]), BLUE),
    **dict.fromkeys(_HELPED, GREEN),
}
_NOTHING = 1.0  # bytes of a method that sends none, on a logarithmic axis


def draw_pareto(found: Mapping[Family, Comparison], path: Path) -> None:
    """A panel for each kind of clients: means over its settings."""
    panels = {
        title: (points_of(comparison, settings), comparison.plan.settings[0].startswith("related"))
        for comparison in found.values()
        for title, settings in _kinds(comparison).items()
    }
    rows = math.ceil(len(panels) / _COLUMNS)
    figure = Figure(figsize=(15, 4.6 * rows), layout="constrained")
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
    shown = {name: point for name, point in points.items() if name in _COLOURS}
    front = unbeaten(shown, is_error)
    axes.plot(*zip(*(shown[name] for name in front), strict=True), "-", color="0.8", zorder=1)
    for name, (sent, score) in shown.items():
        size = 8 if name in front else 5
        axes.plot(sent, score, "o", color=_COLOURS[name], markersize=size)
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes of a client and round")
    axes.set_ylabel("mean squared error" if is_error else "accuracy, %")
    if not is_error:
        stretch(axes)
    tidy(axes)
    name_points(axes, shown, _COLOURS, bold=front)
