"""How far the study is: a bar on a terminal, now and then a line elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINES = 20  # of a whole study
_SECONDS = 600.0  # over which the speed is taken


class Display:
    """Counts finished runs; a context manager."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        """Begin.

        Args:
            console: where to show it.
            total: runs.
            done: how many had finished before.
        """
        self._console, self._total = console, total
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=console, speed_estimate_period=_SECONDS, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("")
        self.phase("tuning", done)

    def phase(self, name: str, done: int) -> None:
        """Say what the next runs are for, and how many have finished before."""
        self._done, self._before, self._began = done, done, time.monotonic()
        self._bar.reset(self._task, description=name, total=self._total, completed=done)

    def advance(self) -> None:
        """One more run has finished."""
        self._done += 1
        self._bar.advance(self._task)
        if self._bar.disable and self._done * _LINES // self._total != (
            (self._done - 1) * _LINES // self._total
        ):
            spent = time.monotonic() - self._began
            left = spent / (self._done - self._before) * (self._total - self._done)
            self._console.print(
                f"{self._done} of {self._total} runs, {spent / 60:.1f} min, "
                f"about {left / 60:.1f} min left"
            )

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
