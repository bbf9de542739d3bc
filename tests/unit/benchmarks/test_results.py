"""Figures become ratios, tables and plots."""

import json
from pathlib import Path

import pytest

from benchmarks import environments, roster
from benchmarks.environments import for_older_python
from benchmarks.plot import draw, draw_scale
from benchmarks.results import Measurement, Size, ratio, save
from benchmarks.speed import read_options
from benchmarks.startup import as_sheet, measure_pairs
from benchmarks.tables import scale_tables, significant, speed_tables


def measurement(side: str, seconds: list[float], model: str = "mlp") -> Measurement:
    return Measurement(
        data="digits", model=model, sampled=100, side=side, seconds=seconds,
        startup=1.5, peak_mb=300.4, loss=2.0,
    )  # fmt: skip


OURS = measurement("ours", [0.010, 0.020, 0.010])
PEER = measurement("pfl", [0.100, 0.100, 0.300])
OTHER = measurement("pfl", [0.5], model="moe")


def test_a_ratio_is_of_turns_that_lie_side_by_side() -> None:
    # 10, 5 and 30 times; the ratio of the medians would be 10 as well, so a second case:
    assert ratio(PEER, OURS) == pytest.approx(10.0)
    slow_then_fast = measurement("pfl", [0.03, 0.05, 0.01])
    assert ratio(slow_then_fast, OURS) == pytest.approx(2.5)  # of 3, 2.5 and 1; of medians 3


def test_tables_have_a_row_for_each_side_and_leave_gaps() -> None:
    ratios, times, rates, processes = speed_tables([OURS, PEER, OTHER])
    assert ratios.columns == ["", "digits mlp", "digits moe"]
    assert ratios.rows == [["ours", "1.00", ""], ["pfl", "10.0", ""]]
    assert times.rows == [["ours", "10.0", ""], ["pfl", "100", "500"]]
    assert rates.rows == [["ours", "10,000", ""], ["pfl", "1,000", "200"]]
    assert processes.rows == [["ours", "1.50", "300", "1"], ["pfl", "1.50", "300", "2"]]
    assert "| pfl | 10.0 |  |" in ratios.as_markdown()
    assert ratios.as_rich().row_count == 2


def test_a_table_without_ours_has_no_ratios() -> None:
    assert [len(sheet.rows) for sheet in speed_tables([PEER])] == [1, 1, 1]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0456, "0.046"), (9.876, "9.88"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_sizes_become_a_table_for_each_series() -> None:
    sizes = [
        Size(part=part, clients=1000, sampled=100, seconds=[0.1, 0.2, 0.9], startup=2, peak_mb=310)
        for part in ("cohort", "budget")
    ]
    sheets = scale_tables(sizes)
    assert [sheet.title for sheet in sheets] == ["cohort", "budget"]
    assert sheets[0].rows == [["1,000", "100", "200", "2000", "2.00", "310"]]


def test_figures_and_plots_are_written(tmp_path: Path) -> None:
    save([OURS, PEER], tmp_path / "speed.json")
    stored = json.loads((tmp_path / "speed.json").read_text())
    assert Measurement(**stored["measured"][1]) == PEER
    assert "torch" in stored["machine"]
    draw([OURS, PEER, OTHER], tmp_path / "speed.png")
    size = Size(part="cohort", clients=10, sampled=1, seconds=[0.1], startup=2, peak_mb=310)
    draw_scale([size], tmp_path / "scale.png")
    for name in ("speed.png", "scale.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_pairs_are_interleaved_and_the_first_does_not_count() -> None:
    order: list[str] = []

    def player(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    pairs = measure_pairs(lambda n: player("a", 1.0), lambda n: player("b", 1.5 + n), 2)
    assert order == ["a", "b"] * 3
    assert pairs == [(1.0, 2.5), (1.0, 3.5)]
    assert as_sheet(pairs).rows[:2] == [
        ["run / imports", "3.00"],
        ["lowest and highest", "2.50 to 3.50"],
    ]


@pytest.mark.parametrize("words", [["--repeats", "0"], ["--sampled", "101"], ["--models", "cnn"]])
def test_wrong_options_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(words)
    assert words[0] in capsys.readouterr().err


def test_every_side_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "environment", lambda peer: Path("python-of", peer))
    for side in roster.ALL:
        command = roster.command(side, tmp_path)
        assert str(tmp_path) in command
        if roster.is_peer(side):
            assert Path(command[1]).is_file()
            assert (Path(command[1]).parent / "requirements.txt").is_file()
        else:
            module = str(command[2]).replace(".", "/") + ".py"
            assert (environments.HERE.parent / module).is_file()
    assert set(environments.PEERS) <= set(roster.default(peers=True))
    assert not any(map(roster.is_peer, roster.default(peers=False)))


def test_a_module_for_a_newer_python_runs_on_this_one() -> None:
    source = '''"""A module."""
from dataclasses import dataclass


def first[T](items: list[T]) -> T:
    return items[0]


@dataclass
class Node:
    next: Later | None


class Later[T]:
    items = [1][0]
'''
    names: dict[str, object] = {}
    exec(compile(for_older_python(source), "module", "exec"), names)
    first = names["first"]
    assert callable(first)
    assert first([3, 4]) == 3


def test_a_peer_whose_environment_cannot_be_made_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def environment(peer: str) -> Path:
        if peer == "pfl":
            raise RuntimeError("no such release")
        return Path("python")

    monkeypatch.setattr(roster, "environment", environment)
    assert roster.prepare(["ours", "fluke", "pfl"]) == {"pfl": "no such release"}
