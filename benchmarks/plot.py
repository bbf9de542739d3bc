"""The plots of the benchmarks, drawn without pyplot and without a display."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cases import CLIENTS
from benchmarks.results import Measurement, Size

# Of the Okabe-Ito palette, which colour-blind readers can tell apart; shapes say it again.
LOOKS = {"linear": ("#0072B2", "o"), "mlp": ("#D55E00", "s"), "moe": ("#009E73", "^")}


def draw(measured: Sequence[Measurement], path: Path) -> None:
    """Write a PNG with a panel for each data set and number of sampled clients.

    Each shows how many client updates a side does in a second.
    """
    panels = sorted({(one.data, one.sampled) for one in measured}, key=lambda p: (p[0], -p[1]))
    sides = list(dict.fromkeys(one.side for one in measured))
    height = 1.2 + len(panels) * (0.6 + 0.2 * len(sides))
    figure = Figure(figsize=(9.0, height), layout="constrained")
    every = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (data, sampled) in zip(every, panels, strict=True):
        own = [one for one in measured if (one.data, one.sampled) == (data, sampled)]
        _panel(axes, own, sides)
        axes.set_title(f"{data}, {sampled} of {CLIENTS} clients", loc="left")
    every[-1].set_xlabel("client updates per second")
    every[0].legend(frameon=False, ncols=len(LOOKS), loc="lower right", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=150)


def _panel(axes: Axes, measured: Sequence[Measurement], sides: Sequence[str]) -> None:
    for model, (colour, marker) in LOOKS.items():
        own = [one for one in measured if one.model == model]
        axes.plot(
            [one.sampled / median(one.seconds) for one in own],
            [sides.index(one.side) for one in own],
            linestyle="", marker=marker, color=colour, label=model,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yticks(range(len(sides)), sides)
    axes.set_ylim(len(sides) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)


def draw_scale(sizes: Sequence[Size], path: Path) -> None:
    """Write a PNG: seconds per round, and peak memory, over the number of clients."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for part, (colour, marker) in zip(
        dict.fromkeys(size.part for size in sizes), LOOKS.values(), strict=False
    ):
        own = [size for size in sizes if size.part == part]
        clients = [size.clients for size in own]
        look = {"color": colour, "marker": marker, "label": part}
        left.plot(clients, [median(size.seconds) for size in own], **look)
        right.plot(clients, [size.peak_mb for size in own], **look)
    for axes, label in ((left, "seconds per round"), (right, "peak MB")):
        axes.set_xscale("log")
        axes.set_xlabel("clients")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    left.set_yscale("log")
    right.set_ylim(bottom=0)
    left.legend(frameon=False)
    figure.savefig(path, dpi=150)
