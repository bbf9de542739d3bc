"""`profile.jsonl`: where each round's time went, and what that comes to over a run."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from fedmoe.profiling import SECTIONS, Profile
from fedmoe.tracking import RunDirectory

PROFILE_FILE = "profile.jsonl"


class RoundProfile:
    """Writes a line per round; a context manager, within which sections are counted."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory, self._profile = directory, Profile()
        self._stack, self._started = ExitStack(), 0.0

    def __enter__(self) -> Self:
        self._stack.enter_context(self._profile.at_work())
        self._started = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def end_round(self, number: int) -> None:
        """Write the line of the round that is over; `other` is what no section counted."""
        seconds = time.perf_counter() - self._started
        found = self._profile.take()
        line = {"round": number, **{name: found.get(name, 0.0) for name in SECTIONS}}
        line |= {"other": seconds - sum(found.values()), "seconds": seconds}
        self._directory.append(PROFILE_FILE, line)
        self._started = time.perf_counter()


def profile_totals(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by section over all rounds, the largest first; empty if none was profiled."""
    if not lines:
        return {}
    names = [*SECTIONS, "other"]
    totals = {name: sum(line[name] for line in lines) for name in names}
    return dict(sorted(totals.items(), key=lambda item: -item[1]))
