"""The server's memory of insights: bounded, ordered, and able to be saved.

All numbers of the last rounds are kept as columns, one set a round; of the payloads, each
client's latest, since newer statistics of the same data replace older ones. Rounds that are too
old, or for which there is no room, leave a summary.

Letters: C clients that told something in a round.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.insight.insight import SCALARS, WHOLE, Insight

Columns = dict[str, NDArray[Any]]
DEFAULT_ROUNDS, DEFAULT_BYTES = 50, 64 * 2**20


class Memory:
    """Insights of the last rounds, and each client's payloads.

    Attributes:
        max_rounds: whose numbers are kept.
        max_bytes: of numbers and payloads together; the oldest go first.
        rounds: a round's numbers, (C,) by name and ascending by client; oldest first.
        payload_of: each client's newest arrays by name; who told last comes last.
        dropped: of the rounds that are no longer there: how many, how many insights and
            payloads, and the sums of the real numbers by name.
    """

    def __init__(self, max_rounds: int = DEFAULT_ROUNDS, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_rounds, self.max_bytes = max_rounds, max_bytes
        self.rounds: list[Columns] = []
        self.payload_of: dict[int, Columns] = {}
        self.dropped: Counter[str] = Counter()

    def __len__(self) -> int:
        """Insights remembered."""
        return sum(len(columns["client_id"]) for columns in self.rounds)

    @property
    def nbytes(self) -> int:
        """Of numbers and payloads."""
        kept = [*self.rounds, *self.payload_of.values()]
        return sum(array.nbytes for columns in kept for array in columns.values())

    @property
    def history(self) -> list[Insight]:
        """The insights remembered, without payloads, oldest first."""
        return [one for columns in self.rounds for one in _insights(columns)]

    def add(self, insights: Iterable[Insight]) -> None:
        """Remember a round's insights and forget what is too old or too much."""
        ordered = sorted(insights, key=lambda one: one.client_id)
        if not ordered:
            return
        self.rounds.append(
            {
                name: np.array(
                    [getattr(one, name) for one in ordered],
                    dtype=np.int64 if name in WHOLE else np.float64,
                )
                for name in SCALARS
            }
        )
        for one in ordered:
            known = self.payload_of.pop(one.client_id, {})
            if known or one.payload:
                self.payload_of[one.client_id] = {**known, **one.payload}
        self._forget()

    def _forget(self) -> None:
        oldest = int(self.rounds[-1]["round"][0]) - self.max_rounds
        while int(self.rounds[0]["round"][0]) <= oldest:
            self._drop_round()
        while self.nbytes > self.max_bytes and len(self.rounds) > 1:
            self._drop_round()
        while self.nbytes > self.max_bytes and self.payload_of:
            del self.payload_of[next(iter(self.payload_of))]
            self.dropped["payloads"] += 1

    def _drop_round(self) -> None:
        columns = self.rounds.pop(0)
        self.dropped.update({"rounds": 1, "insights": len(columns["client_id"])})
        for name in SCALARS:
            if name not in WHOLE:
                self.dropped[name] += float(columns[name].sum())  # type: ignore[assignment]

    def of_round(self, round: int) -> Columns | None:
        """What was told in a round, (C,) by name; `None` if nothing was, or it is forgotten."""
        for columns in reversed(self.rounds):
            if columns["round"][0] == round:
                return columns
        return None

    def newest(self, *names: str) -> Columns:
        """Each remembered client's newest numbers, ascending by client.

        Args:
            names: of fields; `client_id` is there in any case.
        """
        wanted = ("client_id", *names)
        if not self.rounds:
            return {name: np.zeros(0, np.int64 if name in WHOLE else np.float64) for name in wanted}
        table = {n: np.concatenate([c[n] for c in reversed(self.rounds)]) for n in wanted}
        _, first = np.unique(table["client_id"], return_index=True)
        return {name: column[first] for name, column in table.items()}

    def collect(self, *names: str) -> tuple[NDArray[np.int64], Columns]:
        """Payload arrays of the clients that have told them all.

        Returns:
            Their ids, ascending, and the arrays, (C, ...) by name; no arrays without clients.
        """
        clients = sorted(c for c, own in self.payload_of.items() if own.keys() >= set(names))
        arrays = {n: np.stack([self.payload_of[c][n] for c in clients]) for n in names if clients}
        return np.array(clients, dtype=np.int64), arrays

    def current(self) -> list[Insight]:
        """Each remembered client's newest insight with its payload, by client id."""
        return [
            replace(one, payload=self.payload_of.get(one.client_id, {}))
            for one in _insights(self.newest(*SCALARS[1:]))
        ]

    def state(self) -> tuple[Columns, dict[str, Any]]:
        """Arrays and plain values that `restore` takes."""
        arrays = {
            f"rounds/{place}/{name}": column
            for place, columns in enumerate(self.rounds)
            for name, column in columns.items()
        }
        for client, own in self.payload_of.items():
            arrays |= {f"payload/{client}/{name}": array for name, array in own.items()}
        return arrays, {"dropped": dict(self.dropped), "order": list(self.payload_of)}

    def restore(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        rounds: dict[int, Columns] = {}
        self.payload_of = {int(client): {} for client in values["order"]}
        for key, array in arrays.items():
            kind, place, name = key.split("/")
            if kind == "payload":
                self.payload_of[int(place)][name] = array
            else:
                rounds.setdefault(int(place), {})[name] = array
        self.rounds = [rounds[place] for place in sorted(rounds)]
        self.dropped = Counter(values["dropped"])


def _insights(columns: Mapping[str, NDArray[Any]]) -> Iterator[Insight]:
    lists: Sequence[Any] = [columns[name].tolist() for name in SCALARS]
    for row in zip(*lists, strict=True):
        yield Insight(**dict(zip(SCALARS, row, strict=True)))
