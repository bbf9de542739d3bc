"""Where a round's time goes, by named sections.

Sections nest; each counts the time that no section within it counts. Without a profile at work
a section costs next to nothing.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Section = str
# In the order of a round: what the strategy sends; messages into a cohort and back; training;
# checks of the replies; merging; evaluation; the run directory. What is left is `other`.
SECTIONS = ("configure", "pack", "train", "guard", "aggregate", "evaluate", "record")


class Profile:
    """Seconds by section.

    Attributes:
        seconds: since it was last taken.
    """

    def __init__(self) -> None:
        self.seconds: dict[Section, float] = {}
        self._open: list[float] = []  # time spent within sections of each open section

    @contextmanager
    def at_work(self) -> Iterator["Profile"]:
        """Count the sections of this thread for the time of the block."""
        token = _PROFILE.set(self)
        try:
            yield self
        finally:
            _PROFILE.reset(token)

    def add(self, name: Section, seconds: float) -> None:
        """Count time that was spent elsewhere, such as on a worker, within the open section."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if self._open:
            self._open[-1] += seconds

    def take(self) -> dict[Section, float]:
        """The seconds so far, which then begin again at 0."""
        taken, self.seconds = self.seconds, {}
        return taken

    @contextmanager
    def section(self, name: Section) -> Iterator[None]:
        """Count the block's time under a name."""
        self._open.append(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            whole = time.perf_counter() - started
            within = self._open.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + whole - within
            if self._open:
                self._open[-1] += whole


_PROFILE: ContextVar[Profile | None] = ContextVar("profile", default=None)


def current_profile() -> Profile | None:
    """The profile that is at work in this thread."""
    return _PROFILE.get()


@contextmanager
def section(name: Section) -> Iterator[None]:
    """Count the block's time in the profile that is at work, if there is one."""
    profile = _PROFILE.get()
    if profile is None:
        yield
        return
    with profile.section(name):
        yield
