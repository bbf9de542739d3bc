"""Signs of life that a client gives while it may be long at work."""

import threading
from collections.abc import Callable

# Seconds that a SuperLink is told between two signs of life, the fewest that it takes; it holds a
# node for gone after twice as many without one. Flower's own nodes say 30.
INTERVAL = 10.0
GONE_AFTER = 2 * INTERVAL
_BEAT = 4.0  # seconds between two of them in fact
_BEAT_AGAIN = 0.5  # after one that did not get through


class Heartbeat:
    """A thread that gives a sign of life every few seconds, from `start` to `stop`."""

    def __init__(self, beat: Callable[[], bool]) -> None:
        """Nothing is sent yet.

        Args:
            beat: gives one sign of life; returns whether it got through.
        """
        self._beat = beat
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Give no further sign; one that is under way is not waited for."""
        self._stopped.set()

    def _run(self) -> None:
        pause = _BEAT
        while not self._stopped.wait(pause):
            pause = _BEAT if self._beat() else _BEAT_AGAIN
