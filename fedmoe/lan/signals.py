"""Ctrl-C and SIGTERM as a wish that is looked at when there is time for it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_WATCHED = (signal.SIGINT, signal.SIGTERM)


class Asked:
    """Whether this process was asked to end.

    Attributes:
        times: how often.
    """

    def __init__(self) -> None:
        self.times = 0
        self._first: int | None = None

    def __call__(self) -> int | None:
        """The signal that came first; `None` as long as there was none."""
        return self._first

    def remember(self, number: int, _frame: FrameType | None) -> None:
        """What the signals' handler is."""
        self.times += 1
        self._first = self._first or number


@contextmanager
def asked_to_end() -> Iterator[Asked]:
    """Only remember the two signals until the context ends."""
    asked = Asked()
    before = {number: signal.signal(number, asked.remember) for number in _WATCHED}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_as(asked: Asked) -> NoReturn:
    """End as the signal that came first would have it.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM; with the exit code that a shell would give.
    """
    if asked() == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
    raise KeyboardInterrupt
