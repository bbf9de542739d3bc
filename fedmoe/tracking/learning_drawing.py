"""Drawing a run round by round: scores, training loss, traffic."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmoe.tracking.records import MODELS, Measure, Model, measure_of, stats_of
from fedmoe.tracking.style import BLUE, GREEN, GREY, ORANGE, PURPLE, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: dict[Model, str] = {"global": BLUE, "personalised": ORANGE}
_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_MOST_MARKERS = 30


def draw_scores(axes: "Axes", records: Sequence[Mapping[str, Any]]) -> None:
    """Draw the mean and the worst decile of each model on the test parts."""
    measures = (measure_of(record["test"]) for record in records)
    measure = next((found for found in measures if found), None)
    name_rounds(axes)
    axes.set_ylabel(f"test {measure}" if measure else "test score")
    tidy(axes)
    if measure is None:
        axes.text(0.5, 0.5, "no round was evaluated", ha="center", transform=axes.transAxes)
        return
    for model in MODELS:
        for key, words, style in (("mean", "mean", "-"), ("worst_decile", "worst decile", "--")):
            rounds, values = _series(records, model, measure, key)
            if rounds:
                label = f"{model}, {words}"
                draw_line(axes, rounds, values, _COLOURS[model], style, label)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=9)


def _series(
    records: Sequence[Mapping[str, Any]], model: Model, measure: Measure, key: str
) -> tuple[list[int], list[float]]:
    """Rounds and values of one statistic; NaN, a gap in the line, where it was not finite."""
    rounds, values = [], []
    for record in records:
        if stats := stats_of(record["test"], model, measure):
            rounds.append(record["round"])
            values.append(_number(stats[key]))
    return rounds, values


def draw_loss(axes: "Axes", records: Sequence[Mapping[str, Any]]) -> None:
    """Draw the clients' mean training loss; a void round is a gap."""
    rounds = [record["round"] for record in records]
    draw_line(axes, rounds, [_number(record["train"]["loss"]) for record in records], GREEN)
    name_rounds(axes)
    axes.set_ylabel("training loss")
    tidy(axes)


def draw_traffic(axes: "Axes", records: Sequence[Mapping[str, Any]]) -> None:
    """Draw the bytes sent up and down since the first record."""
    rounds = [record["round"] for record in records]
    totals = {
        way: np.cumsum([record["bytes"][way] for record in records], dtype=np.float64)
        for way in ("up", "down")
    }
    largest = max((float(total[-1]) for total in totals.values() if total.size), default=0.0)
    unit, scale = next((pair for pair in _UNITS if largest >= pair[1]), ("B", 1.0))
    for way, colour, style in (("up", PURPLE, "-"), ("down", GREY, "--")):
        draw_line(axes, rounds, list(totals[way] / scale), colour, style, way)
    axes.set_ylim(bottom=0)
    name_rounds(axes)
    axes.set_ylabel(f"bytes so far ({unit})")
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    tidy(axes)


def draw_line(
    axes: "Axes",
    rounds: Sequence[int],
    values: Sequence[float],
    colour: str,
    style: str = "-",
    label: str = "",
) -> None:
    """Draw a value a round; NaN is a gap."""
    axes.plot(
        rounds,
        values,
        color=colour,
        label=label,
        linestyle=style,
        linewidth=1.6,
        # Few points are marked, so that a single round shows at all.
        marker="o" if len(rounds) <= _MOST_MARKERS else "",
        markerfacecolor=colour if style == "-" else "none",
        markersize=4,
    )


def name_rounds(axes: "Axes") -> None:
    """Let the x axis count rounds."""
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.set_xlabel("round")


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
