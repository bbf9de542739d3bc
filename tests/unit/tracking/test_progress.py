import io
import sys

import pytest
from tracking_records import parts, record

from fedmoe.tracking.progress import Mode, open_progress
from fedmoe.tracking.records import format_bytes, format_number, format_seconds


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_line_says_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress("lines", 20, 0) as progress:
        progress.update(record(3, parts("accuracy", {"global": 0.5, "personalised": 0.931})))
    assert lines(capsys) == [
        "round  3/20  train loss 0.412  accuracy 0.931 (worst decile 0.831)  "
        "up 1.2 MB  down 2.5 kB  0.05 s"
    ]


def test_global_and_mse_and_rounds_without_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress("lines", 3, 0) as progress:
        progress.update(record(1))
        progress.update(record(2, parts("mse", {"global": 2.5}), failures=4))
        progress.update(record(3, loss=None, void=True))
    first, second, third = lines(capsys)
    assert "mse" not in first
    assert "train loss 0.412  4 failed  mse 2.500 (worst decile 2.400)  up" in second
    assert "train loss -  void  mse 2.500 (worst decile 2.400, round 2)  up" in third


def test_validation_stands_in_where_there_is_no_test_part(
    capsys: pytest.CaptureFixture[str],
) -> None:
    only = record(1) | {"validation": parts("accuracy", {"global": 0.25})}
    with open_progress("lines", 1, 0) as progress:
        progress.update(only)
    assert "accuracy 0.250" in lines(capsys)[0]


@pytest.mark.parametrize(("rounds", "start"), [(1000, 0), (1000, 300), (77, 0), (51, 0)])
def test_long_runs_print_at_most_about_fifty_lines(
    capsys: pytest.CaptureFixture[str], rounds: int, start: int
) -> None:
    with open_progress("lines", rounds, start) as progress:
        for number in range(start + 1, rounds + 1):
            progress.update(record(number))
    numbers = [int(line.split("/")[0].removeprefix("round")) for line in lines(capsys)]
    assert 25 <= len(numbers) <= 52
    assert numbers[0] == start + 1
    assert numbers[-1] == rounds
    assert len(set(numbers)) == len(numbers)


def test_short_runs_print_every_round(capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress("lines", 50, 0) as progress:
        for number in range(1, 51):
            progress.update(record(number))
    assert len(lines(capsys)) == 50


def test_a_run_that_stops_early_shows_its_last_round(capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress("lines", 1000, 0) as progress:
        for number in range(1, 48):
            progress.update(record(number))
    assert lines(capsys)[-1].startswith("round   47/1000")


@pytest.mark.parametrize("mode", ["none", "auto", "bar"])
def test_modes_without_a_terminal(capsys: pytest.CaptureFixture[str], mode: Mode) -> None:
    with open_progress(mode, 2, 0) as progress:
        progress.update(record(1, parts("accuracy", {"global": 0.5})))
        progress.update(record(2))
    output = capsys.readouterr().out
    assert output.count("\x1b") == 0
    assert output.count("\n") == {"none": 0, "auto": 2, "bar": 1}[mode]


def test_bar_on_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with open_progress("auto", 12, 4) as progress:
        progress.update(record(5, parts("accuracy", {"global": 0.931})))
        sys.stderr.write("a warning\n")
        progress.update(record(12, parts("accuracy", {"global": 0.95})))
    text = terminal.getvalue()
    assert "a warning\n" in text
    last = [line for line in text.splitlines() if "loss" in line][-1]
    assert "12/12" in last
    assert "loss 0.412  accuracy 0.950  up 1.2 MB  down 2.5 kB" in last


def test_dumb_terminals_get_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with open_progress("auto", 1, 0) as progress:
        progress.update(record(1))
    assert lines(capsys)[0].startswith("round 1/1")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (5e15, "5000.0 TB")],
)
def test_format_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (float("nan"), "-"),
        (0.0, "0.000"),
        (0.93149, "0.931"),
        (-12.5, "-12.500"),
        (1234.5, "1.23e+03"),
        (0.00012345, "0.000123"),
    ],
)
def test_format_number(value: float | None, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.054, "0.05 s"), (12.34, "12.3 s"), (59.97, "1 min 00 s"), (7380.0, "2 h 03 min")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


class Cell(io.StringIO):
    """Standard output as it is in a notebook."""

    __module__ = "ipykernel.iostream"


def test_in_a_notebook_every_round_writes_over_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", Cell())
    with open_progress("auto", 3, 0) as progress:
        progress.update(record(1, failures=4))
        progress.update(record(2))
        progress.update(record(3, loss=None, void=True))
    assert isinstance(sys.stdout, Cell)
    before, first, second, third = sys.stdout.getvalue().split("\r")
    assert (before, third[-1]) == ("", "\n")
    assert first.startswith("round 1/3  train loss 0.412  4 failed  up")
    assert second.startswith("round 2/3  train loss 0.412  up")
    assert len(second) == len(first) > len(second.rstrip())  # nothing of the longer one is left
    assert third.startswith("round 3/3  train loss -  void")


def test_a_notebook_is_told_nothing_where_nothing_happened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", Cell())
    with open_progress("auto", 3, 3):
        pass
    assert isinstance(sys.stdout, Cell)
    assert sys.stdout.getvalue() == ""
