"""Ctrl-C between rounds instead of amid one, so that the last round's checkpoint is whole."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Requested = Callable[[], bool]


@contextmanager
def deferred_interrupt() -> Iterator[Requested]:
    """Hold the first SIGINT back; a second one interrupts at once.

    Outside the main thread, where Python delivers no signals, nothing is changed.

    Yields:
        a function that says whether an interrupt was asked for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            signal.default_int_handler(number, frame)
        asked = True

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
