"""The server's memory of insights: bounded, ordered, and able to be saved.

All numbers of the last rounds are kept; of the payloads, each client's latest, since newer
statistics of the same data replace older ones.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.insight.insight import SCALARS, Insight


class Memory:
    """Insights of the last `max_rounds` rounds.

    Attributes:
        history: insights without payloads, oldest first.
        latest: each client's newest insight, with payload, by client id.
    """

    def __init__(self, max_rounds: int) -> None:
        self.max_rounds = max_rounds
        self.history: list[Insight] = []
        self.latest: dict[int, Insight] = {}

    def __len__(self) -> int:
        """Insights remembered."""
        return len(self.history)

    def add(self, insights: Iterable[Insight]) -> None:
        """Remember a round's insights and forget what is too old."""
        for insight in sorted(insights, key=lambda one: one.client_id):
            self.history.append(replace(insight, payload={}))
            self.latest[insight.client_id] = insight
        if self.history:
            oldest = self.history[-1].round - self.max_rounds
            self.history = [one for one in self.history if one.round > oldest]

    def current(self) -> list[Insight]:
        """Each client's newest insight, by client id."""
        return [self.latest[client] for client in sorted(self.latest)]

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and plain values that `restore` takes."""
        arrays = {
            f"latest/{client}/{name}": np.asarray(array)
            for client, insight in self.latest.items()
            for name, array in insight.payload.items()
        }
        return arrays, {
            "history": [one.scalars() for one in self.history],
            "latest": [one.scalars() for one in self.latest.values()],
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self.history = [_insight(scalars, {}) for scalars in values["history"]]
        payloads: dict[int, dict[str, NDArray[Any]]] = {}
        for key, array in arrays.items():
            _, client, name = key.split("/")
            payloads.setdefault(int(client), {})[name] = array
        self.latest = {
            int(s["client_id"]): _insight(s, payloads.get(int(s["client_id"]), {}))
            for s in values["latest"]
        }


def _insight(scalars: Mapping[str, Any], payload: Mapping[str, NDArray[Any]]) -> Insight:
    return Insight(**{name: scalars[name] for name in SCALARS}, payload=payload)
