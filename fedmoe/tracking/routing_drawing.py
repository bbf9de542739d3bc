"""Drawing what a router did: who used which expert, and how the experts shared the work.

Letters: K clients, E experts.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.tracking.learning_drawing import draw_line, name_rounds
from fedmoe.tracking.partition_drawing import MOST_ANNOTATED, MOST_TICKS, name_clients
from fedmoe.tracking.partition_drawing import sorted_columns as sorted_by_main_expert
from fedmoe.tracking.style import MANY, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_client_shares(
    figure: "Figure",
    axes: "Axes",
    shares_KE: NDArray[np.float64],
    client_names: Sequence[str],
    number: int,
) -> None:
    """Draw each client's shares (K, E) in a round as a map, clients along the x axis."""
    clients, experts = shares_KE.shape
    columns_KE = shares_KE if clients <= MOST_TICKS else sorted_by_main_expert(shares_KE)
    image = axes.imshow(
        columns_KE.T,
        aspect="auto",
        cmap="Blues",
        extent=(-0.5, clients - 0.5, -0.5, experts - 0.5),
        interpolation="nearest",
        origin="lower",
        vmin=0,
        vmax=1,
    )
    figure.colorbar(image, ax=axes, label="share of the weight", pad=0.02)
    axes.set_title(f"each client in round {number}", fontsize="medium")
    axes.set_ylabel("expert")
    axes.locator_params(axis="y", integer=True)
    if experts <= MOST_TICKS:
        axes.set_yticks(range(experts))
    name_clients(figure, axes, client_names, "sorted by main expert")
    if clients <= MOST_ANNOTATED[0] and experts <= MOST_ANNOTATED[1]:
        for (client, expert), share in np.ndenumerate(shares_KE):
            colour = "white" if share > 0.5 else "0.25" if share >= 0.005 else "0.7"
            words = f"{100 * share:.0f}"
            axes.text(client, expert, words, ha="center", va="center", fontsize=8, color=colour)


def draw_shares(axes: "Axes", records: Sequence[Mapping[str, Any]]) -> None:
    """Draw each expert's share of all mixing weights round by round; dashed: an even share.

    Args:
        axes: to draw on.
        records: the lines of `routing.jsonl`, at least one.
    """
    rounds = [record["round"] for record in records]
    nothing = [np.nan]
    experts = max(len(record["importance"] or nothing) for record in records)
    shares_RE = np.array([record["importance"] or nothing * experts for record in records])
    axes.axhline(1 / experts, color="0.6", linestyle="--", linewidth=1, label="even")
    for expert in range(experts):
        colour, label = MANY[expert % len(MANY)], f"expert {expert}"
        style = "-" if expert < len(MANY) else ":"
        draw_line(axes, rounds, shares_RE[:, expert].tolist(), colour, style, label)
    axes.set_title("all clients together", fontsize="medium")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("share of the weight")
    name_rounds(axes)
    tidy(axes)
    if experts <= 2 * len(MANY):
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
