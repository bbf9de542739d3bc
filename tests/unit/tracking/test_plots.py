import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch
from tracking_records import parts, record

from fedmoe.tracking import plots
from fedmoe.tracking.plots import plot_learning, plot_partition, plot_routing


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures that are drawn during a test."""
    drawn: list[Figure] = []
    save = plots._save

    def keep(figure: Figure, path: Path) -> None:
        drawn.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    yield drawn


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG in pixels."""
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", header[16:24])
    return width, height


def counts(clients: int, labels: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 90, (clients, labels))


def labels(number: int) -> list[str]:
    return [f"label {n}" for n in range(number)]


def clients(number: int) -> list[str]:
    return [f"client {n}" for n in range(number)]


def test_small_partitions_show_every_count(tmp_path: Path, figures: list[Figure]) -> None:
    counts_KO = counts(20, 12)
    plot_partition(counts_KO, labels(12), clients(20), tmp_path / "a.png")
    axes, colorbar = figures[0].axes
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(k, o): str(counts_KO[k, o]) for k in range(20) for o in range(12)}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == clients(20)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == labels(12)
    np.testing.assert_array_equal(axes.images[0].get_array(), counts_KO.T)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("client", "label")
    assert colorbar.get_ylabel() == "samples"


@pytest.mark.parametrize(("number", "columns"), [(41, 41), (10_000, 1000)])
def test_many_clients_are_sorted_and_unnamed(
    tmp_path: Path, figures: list[Figure], number: int, columns: int
) -> None:
    counts_KO = counts(number, 10)
    plot_partition(counts_KO, labels(10), clients(number), tmp_path / "a.png")
    axes = figures[0].axes[0]
    assert not axes.texts
    assert len(axes.get_xticks()) <= 12
    shown_OK = axes.images[0].get_array()
    assert shown_OK is not None
    assert shown_OK.shape == (10, columns)
    assert float(shown_OK.sum()) * number / columns == pytest.approx(counts_KO.sum())
    if columns == number:
        assert (np.diff(shown_OK.argmax(axis=0)) >= 0).all()
    width, height = size(tmp_path / "a.png")
    assert max(width, height) <= 1650


@pytest.mark.parametrize(("total", "whose"), [(3, "3 clients"), (70_000, "the first 3 of 70,000")])
def test_the_title_says_whose_samples_are_drawn(
    tmp_path: Path, figures: list[Figure], total: int, whose: str
) -> None:
    plot_partition(counts(3, 2), labels(2), clients(3), tmp_path / "a.png", total)
    plot_partition(counts(3, 1), [], clients(3), tmp_path / "b.png", total)
    titles = [figure.axes[0].get_title() for figure in figures]
    assert [whose in title for title in titles] == [True, True]


def test_hundreds_of_labels_fit(tmp_path: Path) -> None:
    plot_partition(counts(5, 300), labels(300), clients(5), tmp_path / "a.png")
    assert size(tmp_path / "a.png")[1] <= 1500


def test_names_are_taken_literally_and_cut(tmp_path: Path, figures: list[Figure]) -> None:
    plot_partition(counts(2, 2), ["$a_{", "b"], ["x" * 60, "$y$"], tmp_path / "a.png")
    ticks = [tick.get_text() for tick in figures[0].axes[0].get_xticklabels()]
    assert ticks == ["x" * 19 + "…", "$y$"]


@pytest.mark.parametrize("number", [3, 5000])
def test_regression_shows_client_sizes(tmp_path: Path, figures: list[Figure], number: int) -> None:
    counts_KO = counts(number, 1)
    plot_partition(counts_KO, [], clients(number), tmp_path / "a.png")
    axes = figures[0].axes[0]
    if number == 3:
        heights = [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]
        assert heights == counts_KO[:, 0].tolist()
    else:
        (steps,) = axes.patches
        assert isinstance(steps, StepPatch)
        assert list(steps.get_data()[0]) == sorted(counts_KO[:, 0], reverse=True)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2)])
def test_clients_without_any_samples(tmp_path: Path, shape: tuple[int, int]) -> None:
    empty_KO = np.zeros(shape, dtype=np.int64)
    plot_partition(empty_KO, labels(shape[1]), clients(shape[0]), tmp_path / "a.png")
    plot_partition(empty_KO[:, :1], [], clients(shape[0]), tmp_path / "b.png")
    assert min(size(tmp_path / "a.png") + size(tmp_path / "b.png")) > 100


def test_names_must_fit_the_counts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need 3 client names and 2 class names, got 3 and 1"):
        plot_partition(counts(3, 2), labels(1), clients(3), tmp_path / "a.png")


def test_learning_curves(tmp_path: Path, figures: list[Figure]) -> None:
    both = parts("accuracy", {"global": 0.8, "personalised": 0.9})
    records = [record(1, both), record(2, loss=None, void=True), record(3, both)]
    plot_learning(records, tmp_path / "a.png", "digits $x")
    scores, loss, traffic = figures[0].axes
    lines = {line.get_label(): line for line in scores.lines}
    assert list(lines) == [
        "global, mean",
        "global, worst decile",
        "personalised, mean",
        "personalised, worst decile",
    ]
    assert np.asarray(lines["personalised, mean"].get_xydata()).tolist() == [[1, 0.9], [3, 0.9]]
    assert np.asarray(lines["global, worst decile"].get_ydata()) == pytest.approx([0.7, 0.7])
    assert scores.get_ylabel() == "test accuracy"
    np.testing.assert_array_equal(np.asarray(loss.lines[0].get_ydata()), [0.412, np.nan, 0.412])
    up, down = traffic.lines
    assert np.asarray(up.get_ydata()) == pytest.approx([1.23, 2.46, 3.69])
    assert np.asarray(down.get_ydata()) == pytest.approx([0.0025, 0.005, 0.0075])
    assert traffic.get_ylabel() == "bytes so far (MB)"


def test_one_round_of_regression_is_visible(tmp_path: Path, figures: list[Figure]) -> None:
    plot_learning([record(1, parts("mse", {"global": 2.0}))], tmp_path / "a.png", "one")
    scores = figures[0].axes[0]
    assert scores.get_ylabel() == "test mse"
    assert [line.get_marker() for line in scores.lines] == ["o", "o"]


@pytest.mark.parametrize("records", [[], [record(1)]])
def test_runs_that_were_never_evaluated(
    tmp_path: Path, figures: list[Figure], records: list[dict[str, Any]]
) -> None:
    plot_learning(records, tmp_path / "a.png", "none")
    assert figures[0].axes[0].texts[0].get_text() == "no round was evaluated"


def shares(clients: int, experts: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).dirichlet(np.full(experts, 0.3), clients)


def test_routing_shows_each_client_and_each_expert(tmp_path: Path, figures: list[Figure]) -> None:
    shares_KE = shares(5, 3)
    shares_KE[2] = np.nan  # it has no samples
    lines = [{"round": 2 * n + 1, "importance": row.tolist()} for n, row in enumerate(shares(4, 3))]
    lines[1]["importance"] = None  # nobody answered
    plot_routing(lines, shares_KE, clients(5), tmp_path / "a.png", "$moe_{", 7)
    above, colorbar, below = figures[0].get_axes()
    left = np.delete(shares_KE, 2, axis=0)
    np.testing.assert_array_equal(above.images[0].get_array(), left.T)
    assert [tick.get_text() for tick in above.get_xticklabels()] == [
        name for name in clients(5) if name != "client 2"
    ]
    written = {text.get_position(): text.get_text() for text in above.texts}
    assert written == {(k, e): f"{100 * left[k, e]:.0f}" for k in range(4) for e in range(3)}
    assert "round 7" in above.get_title()
    even, *drawn = below.lines
    assert set(np.asarray(even.get_ydata())) == {1 / 3}
    for expert, line in enumerate(drawn):
        assert list(np.asarray(line.get_xdata())) == [1, 3, 5, 7]
        expected = [np.nan if n == 1 else shares(4, 3)[n, expert] for n in range(4)]
        np.testing.assert_array_equal(line.get_ydata(), expected)
    assert colorbar.get_ylabel() == "share of the weight"


@pytest.mark.parametrize(("number", "experts"), [(3000, 16), (3, 50)])
def test_routing_of_many_clients_or_experts_fits(
    tmp_path: Path, figures: list[Figure], number: int, experts: int
) -> None:
    shares_KE = shares(number, experts)
    lines = [{"round": 1, "importance": shares_KE.mean(axis=0).tolist()}]
    plot_routing(lines, shares_KE, clients(number), tmp_path / "a.png", "moe", 1)
    above, _, below = figures[0].get_axes()
    shown_EK = above.images[0].get_array()
    assert shown_EK is not None
    assert shown_EK.shape == (experts, min(number, 1000))
    if number > 40:
        assert (np.diff(shown_EK.argmax(axis=0)) >= 0).all()
    assert len(below.lines) == 1 + experts
    assert max(size(tmp_path / "a.png")) <= 1650


def test_routing_of_clients_without_samples(tmp_path: Path) -> None:
    lines = [{"round": 1, "importance": None}]
    plot_routing(lines, np.full((2, 3), np.nan), clients(2), tmp_path / "a.png", "moe", 1)
    assert size(tmp_path / "a.png") > (0, 0)
