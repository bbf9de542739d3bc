"""`profile.jsonl`: where each round's time went, and what that comes to over a run."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fedmoe.profiling import SECTIONS, Profile
from fedmoe.tracking import RunDirectory

PROFILE_FILE = "profile.jsonl"


class RoundProfile:
    """Writes a line per round.

    Attributes:
        profile: counts the sections while it is at work.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.profile = Profile()
        self._directory, self._started = directory, time.perf_counter()

    def end_round(self, number: int) -> None:
        """Write the line of the round that is over; `other` is what no section counted."""
        seconds = time.perf_counter() - self._started
        found = self.profile.take()
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
