"""Waiting that grows longer: eager at first, sparing of the machine later."""

import threading

FIRST, FACTOR, LONGEST = 0.02, 1.5, 0.3  # seconds


class Pauses:
    """Pauses of 20 milliseconds at first, half as long again each time, of 0.3 s at most."""

    def __init__(self, ended: threading.Event | None = None) -> None:
        """`ended` cuts a pause short when it is set."""
        self._ended = ended or threading.Event()
        self._next = FIRST

    def restart(self) -> None:
        """Something happened: be eager again."""
        self._next = FIRST

    def wait(self) -> None:
        """Pause once."""
        self._ended.wait(self._next)
        self._next = min(self._next * FACTOR, LONGEST)
