"""A side's end of the conversation with the benchmark: it plays a round when it is told to.

A side is a process of its own, so that its start-up and its memory are its own, and so that it
can live in another environment; hence this module needs nothing but Python. It plays one round
unasked, which ends its start-up, and says `{"started": true}`. Then each line `round` is
answered by `{"seconds": ...}` of one round, and `stop` by `{"loss": ...}` of the global model on
the test samples, and the end. A side that cannot run says `{"refused": "why"}` instead.
"""

import json
import os
import time
from collections.abc import Callable
from typing import Any


class Parent:
    """The benchmark, as a side sees it."""

    def __init__(self) -> None:
        """Keep standard input and output for the conversation, whatever libraries do with them."""
        self._words = os.fdopen(os.dup(0), "r", encoding="utf-8")
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)  # what is printed goes where errors go: to the side's log

    def say(self, **answer: Any) -> None:
        """Send one line."""
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def wants_round(self) -> bool:
        """Wait for the next word; false where it is not `round`, or the parent is gone."""
        return self._words.readline().strip() == "round"


class Pace:
    """Rounds at the parent's word, for a side whose own loop goes on by itself.

    The loop calls `round_ended` after every round.
    """

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self._began: float | None = None

    def round_ended(self) -> bool:
        """Report the round that is over and wait for the next; false where there is none."""
        if self._began is None:
            self._parent.say(started=True)
        else:
            self._parent.say(seconds=time.perf_counter() - self._began)
        goes_on = self._parent.wants_round()
        self._began = time.perf_counter()
        return goes_on


def play(parent: Parent, one_round: Callable[[], None], loss: Callable[[], float]) -> None:
    """Speak for a side whose round is a function.

    Args:
        parent: who asks.
        one_round: plays one.
        loss: of the global model, in nats; called once, at the end.
    """
    pace = Pace(parent)
    one_round()
    while pace.round_ended():
        one_round()
    parent.say(loss=loss())
