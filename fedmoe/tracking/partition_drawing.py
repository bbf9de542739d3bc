"""Drawing what each client has: samples by label, or just how many.

Letters: K clients, O labels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.tracking.style import BLUE, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ANNOTATED = (20, 12)
MOST_TICKS = 40
_MOST_COLUMNS = 1000
_LONGEST_NAME = 20


def draw_labels(
    figure: "Figure",
    counts_KO: NDArray[np.integer[Any]],
    class_names: Sequence[str],
    client_names: Sequence[str],
    whose: str,
) -> None:
    """Fill a figure with a map of counts (K, O), clients along the x axis."""
    num_clients, num_labels = counts_KO.shape
    annotated = num_clients <= MOST_ANNOTATED[0] and num_labels <= MOST_ANNOTATED[1]
    columns_KO = counts_KO if num_clients <= MOST_TICKS else sorted_columns(counts_KO)
    # One huge client must not bleach the others; its colour is then the end of the scale.
    top = columns_KO.max(initial=1) if annotated else np.percentile(columns_KO, 99.5)
    axes = figure.add_subplot()
    image = axes.imshow(
        columns_KO.T,
        aspect="auto",
        cmap="Blues",
        extent=(-0.5, num_clients - 0.5, -0.5, num_labels - 0.5),
        interpolation="nearest",
        origin="lower",
        vmin=0,
        vmax=max(1.0, float(top)),
    )
    extend = "max" if columns_KO.max(initial=0) > top else "neither"
    colorbar = figure.colorbar(image, ax=axes, label="samples", pad=0.02, extend=extend)
    colorbar.ax.locator_params(axis="y", integer=True)
    axes.set_title(f"Samples per label of {whose}", fontweight="bold")
    axes.set_ylabel("label")
    if num_labels <= MOST_TICKS:
        axes.set_yticks(range(num_labels), _cut(class_names), parse_math=False)
    name_clients(figure, axes, client_names, "sorted by most frequent label")
    if annotated:
        _write_counts(axes, counts_KO)


def sorted_columns(counts_KO: NDArray[Any]) -> NDArray[np.float64]:
    """Clients by their most frequent label, then by its count; averaged if there are many.

    Args:
        counts_KO: (K, O) what each client has of each label.

    Returns:
        (columns, O), at most 1,000 columns.
    """
    order = np.lexsort((-counts_KO.max(axis=1), counts_KO.argmax(axis=1)))
    groups = np.array_split(counts_KO[order], min(len(order), _MOST_COLUMNS))
    return np.stack([group.mean(axis=0) for group in groups])


def _write_counts(axes: "Axes", counts_KO: NDArray[np.integer[Any]]) -> None:
    middle = counts_KO.max(initial=0) / 2
    for (client, label), count in np.ndenumerate(counts_KO):
        axes.text(
            client,
            label,
            f"{count}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if count > middle else "0.25" if count else "0.7",
        )


def draw_sizes(
    figure: "Figure",
    sizes_K: NDArray[np.integer[Any]],
    client_names: Sequence[str],
    whose: str,
) -> None:
    """Fill a figure with bars of the clients' sizes (K,)."""
    axes = figure.add_subplot()
    axes.set_title(f"Samples of {whose}", fontweight="bold")
    if len(sizes_K) <= MOST_TICKS:
        bars = axes.bar(range(len(sizes_K)), sizes_K, color=BLUE)
        if len(sizes_K) <= MOST_ANNOTATED[0]:
            axes.bar_label(bars, fmt="{:,.0f}", fontsize=8, padding=2)
    else:
        axes.stairs(np.sort(sizes_K)[::-1], np.arange(len(sizes_K) + 1), fill=True, color=BLUE)
    axes.margins(x=0.01)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylabel("samples")
    name_clients(figure, axes, client_names, "largest first")
    tidy(axes)


def name_clients(figure: "Figure", axes: "Axes", client_names: Sequence[str], order: str) -> None:
    """Put the names below the x axis, or say how the clients are ordered if they are many."""
    if len(client_names) > MOST_TICKS:
        axes.set_xlabel(f"clients, {order}")
        return
    names = _cut(client_names)
    # At this size a letter is about 0.09 inches wide, and the margins take about 1.8 inches.
    room = (figure.get_figwidth() - 1.8) / max(1, len(names))
    slanted = 0.09 * max(map(len, names), default=0) + 0.05 > room
    axes.set_xticks(
        range(len(names)),
        names,
        rotation=60 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor" if slanted else "default",
        parse_math=False,
    )
    axes.set_xlabel("client")


def _cut(names: Sequence[str]) -> list[str]:
    """Names short enough to leave room for the drawing."""
    return [
        name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names
    ]
