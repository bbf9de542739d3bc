"""The study's plots: ours in colour, the others in grey, and lines that say whose they are."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.study.comparison import Comparison, Result
from benchmarks.study.methods import METHODS, OURS
from benchmarks.study.settings import FAMILIES, Family
from fedmoe.tracking.style import BLUE, GREEN, GREY, ORANGE, PURPLE, tidy

# Those that a reader looks for; all others are grey.
_COLOURS = {OURS: BLUE, "fedavg": ORANGE, "local": PURPLE, "ifca": GREEN, "fedem": "#8C6D1F"}
_ROOM = 0.034  # of a panel's height, which a label needs
_LONG = "fedavg_long"  # the control by bytes
_TICKS = (20, 40, 60, 70, 75, 80, 85, 90, 93, 95, 97, 98, 99)

Curve = tuple[list[float], list[float]]


def draw_settings(comparison: Comparison, path: Path) -> None:
    """A panel for each family: accuracy over its settings, a line for each strategy."""
    panels = {}
    for family in _families(comparison):
        settings = comparison.settings_of(family)
        panels[family] = {
            name: (
                [float(place) for place in range(len(settings))],
                [_percent(comparison.results[setting, name]) for setting in settings],
            )
            for name in _strategies(comparison)
        }
    figure, every = _panels(panels, "o-")
    for axes, family in zip(every, panels, strict=True):
        settings = comparison.settings_of(family)
        names = [name.removeprefix(f"{family}_") for name in settings]
        axes.set_xticks(range(len(settings)), names, rotation=25, ha="right")
        axes.set_ylabel("accuracy on the clients' own test data, %")
    figure.savefig(path, dpi=130)


def draw_bytes(comparison: Comparison, path: Path) -> None:
    """A panel for each family: accuracy over what a client has sent and got, its settings' mean."""
    panels = {
        family: {
            name: _course([comparison.results[s, name] for s in comparison.settings_of(family)])
            for name in _with_long(comparison)
        }
        for family in _families(comparison)
    }
    figure, every = _panels(panels, "-")
    for axes in every:
        axes.set_xscale("log")
        axes.set_xlabel("bytes to and from a client")
        axes.set_ylabel("accuracy, mean over the settings, %")
    figure.savefig(path, dpi=130)


def _families(comparison: Comparison) -> list[Family]:
    return [family for family in FAMILIES if comparison.settings_of(family)]


def _strategies(comparison: Comparison) -> list[str]:
    """All but controls; ours last, and so on top."""
    names = [name for name in comparison.plan.methods if METHODS[name].role != "control"]
    return sorted(names, key=lambda name: name == OURS)


def _with_long(comparison: Comparison) -> list[str]:
    """FedAvg with as many bytes belongs to a plot over bytes."""
    long = [_LONG] if _LONG in comparison.plan.methods else []
    return [*long, *_strategies(comparison)]


def _percent(result: Result) -> float:
    return 100 * result.accuracy.mean if result.accuracy else math.nan


def _course(results: Sequence[Result]) -> Curve:
    """Bytes and accuracy by evaluated round, means over settings and seeds; empty if one failed."""
    courses = [outcome.course for result in results for outcome in result.outcomes]
    if not all(courses) or len({len(course) for course in courses}) > 1:
        return [], []
    rounds = list(zip(*courses, strict=True))
    return (
        [fmean(point.bytes for point in points) for points in rounds],
        [100 * fmean(point.test for point in points) for points in rounds],
    )


def _panels(
    panels: Mapping[Family, Mapping[str, Curve]], marker: str
) -> tuple[Figure, Sequence[Axes]]:
    """Draw the curves, one panel below the other, with their names at the right."""
    figure = Figure(figsize=(9.5, 5.2 * len(panels)), layout="constrained")
    every: list[Axes] = figure.subplots(len(panels), 1, squeeze=False)[:, 0].tolist()
    for axes, (family, curves) in zip(every, panels.items(), strict=True):
        for name, (x, y) in curves.items():
            colour, ours = _COLOURS.get(name, "0.72"), name == OURS
            width = 2.6 if ours else 1.4 if name in _COLOURS else 1.0
            axes.plot(x, y, marker, markersize=2 + width, color=colour, linewidth=width)
        axes.set_title(family, loc="left")
        stretch(axes)
        tidy(axes)
        ends = {name: (x[-1], y[-1]) for name, (x, y) in curves.items() if y}
        name_points(axes, ends, _COLOURS, bold=[OURS])
    return figure, every


def stretch(axes: Axes) -> None:
    """Give more room to high accuracies: the axis is one of the logarithm of what is wrong."""
    axes.set_yscale(
        "function",
        functions=(lambda y: -np.log10(np.maximum(101 - y, 1e-3)), lambda z: 101 - 10**-z),
    )
    low, high = axes.get_ylim()
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])


def name_points(
    axes: Axes,
    points: Mapping[str, tuple[float, float]],
    colours: Mapping[str, str],
    bold: Sequence[str],
) -> None:
    """Write each point's name at the right, moved apart where points lie close together."""
    ends = {name: point for name, point in points.items() if math.isfinite(point[1])}
    to_fraction = axes.transData + axes.transAxes.inverted()
    heights = {name: float(to_fraction.transform(end)[1]) for name, end in ends.items()}
    for name, height in moved_apart(heights, _ROOM).items():
        axes.annotate(
            name, ends[name], (1.03, height), xycoords="data", textcoords="axes fraction",
            va="center", fontsize=8, color=colours.get(name, GREY),
            fontweight="bold" if name in bold else "normal",
            arrowprops={"arrowstyle": "-", "color": "0.85", "linewidth": 0.6},
            annotation_clip=False,
        )  # fmt: skip


def moved_apart(heights: Mapping[str, float], room: float) -> dict[str, float]:
    """Heights in the same order of which any two are `room` apart, none moved without need.

    Labels that would overlap form a block about the mean of where they want to be.
    """
    blocks: list[tuple[list[str], float]] = []  # names, lowest first, and the block's middle
    for name in sorted(heights, key=lambda one: heights[one]):
        names, middle = [name], heights[name]
        while blocks and middle - room * len(names) / 2 < blocks[-1][1] + (
            room * len(blocks[-1][0]) / 2
        ):
            below, _ = blocks.pop()
            names = [*below, *names]
            middle = fmean(heights[one] for one in names)
        blocks.append((names, middle))
    return {
        name: middle + room * (place - (len(names) - 1) / 2)
        for names, middle in blocks
        for place, name in enumerate(names)
    }
