"""The drawings of a run, as PNG files.

matplotlib is imported when something is drawn, and used through its objects: no `pyplot`, no
global state, no display.

Letters: K clients, O classes (1 for regression), E experts.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.tracking.files import write_atomic
from fedmoe.tracking.learning_drawing import draw_loss, draw_scores, draw_traffic
from fedmoe.tracking.partition_drawing import draw_labels, draw_sizes
from fedmoe.tracking.routing_drawing import draw_client_shares, draw_shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 150


def plot_partition(
    counts_KO: NDArray[np.integer[Any]],
    class_names: Sequence[str],
    client_names: Sequence[str],
    path: Path,
    federation_size: int | None = None,
) -> None:
    """Draw how many samples of which label each client has.

    Up to 20 clients by 12 labels the counts are written into the map. Beyond 40 clients they
    lose their names and are sorted, by the most frequent label (regression: by size); beyond
    1,000 a column is the mean of neighbours.

    Args:
        counts_KO: samples of each client and label; (K, 1) for regression.
        class_names: O names; empty for regression, which gives a bar chart of client sizes.
        client_names: K names.
        path: of the PNG.
        federation_size: how many clients there are, if these K are only the first of them.

    Raises:
        ValueError: if the names do not fit the counts.
    """
    counts_KO = np.asarray(counts_KO)
    num_clients, num_labels = counts_KO.shape
    if len(client_names) != num_clients or len(class_names) not in (0, num_labels):
        raise ValueError(
            f"counts of shape {counts_KO.shape} need {num_clients} client names and "
            f"{num_labels} class names, got {len(client_names)} and {len(class_names)}"
        )
    whose = f"{num_clients:,} clients"
    if federation_size is not None and federation_size > num_clients:
        whose = f"the first {num_clients:,} of {federation_size:,} clients"
    if class_names:
        figure = _figure(num_clients, float(np.clip(1.6 + 0.34 * num_labels, 3.2, 10.0)))
        draw_labels(figure, counts_KO, class_names, client_names, whose)
    else:
        figure = _figure(num_clients, 4.0)
        draw_sizes(figure, counts_KO.sum(axis=1), client_names, whose)
    _save(figure, path)


def plot_learning(records: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw a run round by round: test score, training loss, and bytes sent so far.

    Args:
        records: the lines of `metrics.jsonl`; rounds that were not evaluated give no score.
        path: of the PNG.
        title: above the drawing.
    """
    figure = _new_figure(8.0, 6.2)
    grid = figure.add_gridspec(2, 2, height_ratios=[2.1, 1])
    figure.suptitle(title, fontweight="bold", parse_math=False)
    draw_scores(figure.add_subplot(grid[0, :]), records)
    draw_loss(figure.add_subplot(grid[1, 0]), records)
    draw_traffic(figure.add_subplot(grid[1, 1]), records)
    _save(figure, path)


def plot_routing(
    records: Sequence[Mapping[str, Any]],
    shares_KE: NDArray[np.float64],
    client_names: Sequence[str],
    path: Path,
    title: str,
    number: int,
) -> None:
    """Draw which client used which expert in a round, and the experts' shares by round.

    Args:
        records: the lines of `routing.jsonl`, at least one.
        shares_KE: each expert's share of each client's mixing weight; NaN for a client without
            samples, which is left out.
        client_names: K names.
        path: of the PNG.
        title: above the drawing.
        number: of the round that `shares_KE` are of.
    """
    known = np.flatnonzero(np.isfinite(shares_KE).all(axis=1))
    shares_KE, names = shares_KE[known], [client_names[client] for client in known.tolist()]
    width = float(np.clip(2.6 + 0.42 * len(names), 8.0, 11.0))
    figure = _new_figure(width, float(np.clip(5.0 + 0.28 * shares_KE.shape[1], 5.6, 10.0)))
    figure.suptitle(title, fontweight="bold", parse_math=False)
    # Each part is as wide as its own colour bar or legend allows.
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.2, 1])[:, 0]
    if names:
        draw_client_shares(figure, above.add_subplot(), shares_KE, names, number)
    draw_shares(below.add_subplot(), records)
    _save(figure, path)


def _new_figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _figure(num_clients: int, height: float) -> "Figure":
    """A figure wide enough for the clients."""
    return _new_figure(float(np.clip(2.6 + 0.42 * num_clients, 6.0, 11.0)), height)


def _save(figure: "Figure", path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())
