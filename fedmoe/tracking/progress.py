"""Showing how a run gets on: a bar on a terminal, a line per round elsewhere."""

import os
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from fedmoe.tracking.records import (
    format_bytes,
    format_number,
    format_seconds,
    measure_of,
    stats_of,
)

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

Mode = Literal["auto", "bar", "lines", "none"]
_MOST_LINES = 50


class Progress:
    """Shows nothing; the other displays are subclasses. A context manager."""

    def update(self, record: Mapping[str, Any]) -> None:
        """Take in a finished round.

        Args:
            record: what is written to `metrics.jsonl`.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the display."""


def open_progress(mode: Mode, rounds: int, start: int) -> Progress:
    """Choose a display.

    Args:
        mode: `bar`, `lines`, `none`, or `auto`: a bar if standard output is a terminal that
            can move its cursor, one line that is written over if it is a notebook, else lines.
        rounds: the number of the last round.
        start: rounds that are done already; 0 for a new run.
    """
    if mode == "auto":
        if type(sys.stdout).__module__ == "ipykernel.iostream":
            return _OneLine(rounds, start)
        capable = sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        mode = "bar" if capable else "lines"
    if mode == "bar":
        return _Bar(rounds, start)
    return _Lines(rounds, start) if mode == "lines" else Progress()


class _Lines(Progress):
    """A line per round, or about 50 evenly spaced ones for a longer run, on standard output."""

    def __init__(self, rounds: int, start: int) -> None:
        self._rounds = rounds
        self._start = start
        self._stride = max(1, -(-(rounds - start) // _MOST_LINES))
        self._score = _Score()
        self._pending: Mapping[str, Any] | None = None

    def update(self, record: Mapping[str, Any]) -> None:
        self._score.update(record)
        self._pending = record
        done = record["round"] - self._start
        if done == 1 or done % self._stride == 0 or record["round"] == self._rounds:
            self._write()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A run that stops early still shows its last round.
        self._write()

    def _write(self) -> None:
        if (record := self._pending) is None:
            return
        self._pending = None
        sys.stdout.write(self._line(record) + "\n")
        sys.stdout.flush()

    def _line(self, record: Mapping[str, Any]) -> str:
        width = len(str(self._rounds))
        pieces = [
            f"round {record['round']:>{width}}/{self._rounds}",
            "train " + "  ".join(_training(record)),
            *self._score.words(record["round"]),
            *_traffic(record),
            format_seconds(record["seconds"]),
        ]
        return "  ".join(pieces)


class _OneLine(_Lines):
    """A line that every round writes over: a notebook's cell keeps what is printed."""

    def __init__(self, rounds: int, start: int) -> None:
        super().__init__(rounds, start)
        self._width = 0

    def update(self, record: Mapping[str, Any]) -> None:
        self._score.update(record)
        line = self._line(record)
        sys.stdout.write("\r" + line.ljust(self._width))  # a notebook flushes by itself
        self._width = len(line)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._width:
            sys.stdout.write("\n")


class _Bar(Progress):
    """rich's bar; what is logged meanwhile appears above it."""

    def __init__(self, rounds: int, start: int) -> None:
        self._score = _Score()
        self._bar = _rich_bar()
        self._task = self._bar.add_task("", total=rounds, completed=start, words="")

    def update(self, record: Mapping[str, Any]) -> None:
        self._score.update(record)
        words = [*_training(record), *self._score.short_words(), *_traffic(record)]
        self._bar.update(self._task, completed=record["round"], words="  ".join(words))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()


class _Score:
    """The latest evaluation; rounds without one show it with the number of its round."""

    def __init__(self) -> None:
        self._round = 0
        self._measure = ""
        self._stats: Mapping[str, float | None] = {}

    def update(self, record: Mapping[str, Any]) -> None:
        for parts in (record["test"], record["validation"]):
            if measure := measure_of(parts):
                personalised = stats_of(parts, "personalised", measure)
                self._stats = personalised or stats_of(parts, "global", measure) or {}
                self._measure = measure
                self._round = record["round"]
                return

    def words(self, now: int) -> list[str]:
        if not self._measure:
            return []
        mean = format_number(self._stats["mean"])
        worst = format_number(self._stats["worst_decile"])
        when = "" if self._round == now else f", round {self._round}"
        return [f"{self._measure} {mean} (worst decile {worst}{when})"]

    def short_words(self) -> list[str]:
        return [f"{self._measure} {format_number(self._stats['mean'])}"] if self._measure else []


def _training(record: Mapping[str, Any]) -> list[str]:
    train = record["train"]
    words = [f"loss {format_number(train['loss'])}"]
    if train["failures"]:
        words.append(f"{train['failures']} failed")
    if train["void"]:
        words.append("void")
    return words


def _traffic(record: Mapping[str, Any]) -> list[str]:
    return [f"{way} {format_bytes(record['bytes'][way])}" for way in ("up", "down")]


def _rich_bar() -> "RichProgress":
    # rich takes longer to import than a small run's first round.
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    return RichProgress(
        # Narrow enough for all columns to fit a terminal of 80 characters.
        MofNCompleteColumn(),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[words]}", markup=False, table_column=Column(no_wrap=True)),
        TimeRemainingColumn(),
        # Warnings that were sent to a file must not come back to the terminal.
        redirect_stderr=sys.stderr.isatty(),
    )
