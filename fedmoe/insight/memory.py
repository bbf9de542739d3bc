"""The server's memory of insights: bounded, ordered, and able to be saved.

All numbers of the last rounds are kept as columns, one set a round; of the payloads, each
client's latest, since newer statistics of the same data replace older ones. Rounds that are too
old, or for which there is no room, leave a summary.

Letters: C clients that told something in a round.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.insight.columns import Columns, RoundInsights, insights_of
from fedmoe.insight.insight import SCALARS, WHOLE, Insight
from fedmoe.insight.latest import Latest

DEFAULT_ROUNDS, DEFAULT_BYTES = 50, 64 * 2**20
_REAL = tuple(name for name in SCALARS if name not in WHOLE)


class Memory:
    """Insights of the last rounds, and each client's payloads.

    Attributes:
        max_rounds: whose numbers are kept.
        max_bytes: of numbers and payloads together; the oldest go first. The last round's
            numbers stay in any case.
        rounds: a round's numbers, (C,) by name and ascending by client; oldest first.
        latest: payload arrays by name.
        dropped: of the rounds that are no longer there: how many `rounds`, `insights` and
            clients' `payloads`, and the sum of each real number by its name.
    """

    def __init__(self, max_rounds: int = DEFAULT_ROUNDS, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_rounds, self.max_bytes = max_rounds, max_bytes
        self.rounds: list[Columns] = []
        self.latest: dict[str, Latest] = {}
        self.dropped: dict[str, float] = {}
        self._told: dict[int, None] = {}  # clients with payloads; who told last comes last
        self._newest: NDArray[np.intp] | None = None  # places in the rounds from last to first

    def __len__(self) -> int:
        """Insights remembered."""
        return sum(len(columns["client_id"]) for columns in self.rounds)

    @property
    def nbytes(self) -> int:
        """Of numbers and payloads."""
        numbers = sum(array.nbytes for columns in self.rounds for array in columns.values())
        return numbers + sum(table.nbytes for table in self.latest.values())

    @property
    def history(self) -> list[Insight]:
        """The insights remembered, without payloads, oldest first."""
        return [Insight(**one) for columns in self.rounds for one in insights_of(columns)]

    def add(self, insights: RoundInsights | Iterable[Insight]) -> None:
        """Remember a round's insights and forget what is too old or too much."""
        told = insights if isinstance(insights, RoundInsights) else RoundInsights.of(insights)
        if not len(told):
            return
        self.rounds.append(told.numbers)
        self._newest = None
        for client_G, arrays in told.payloads:
            place_G = np.searchsorted(told.numbers["client_id"], client_G)
            examples_G = told.numbers["num_examples"][place_G]
            for name, rows in arrays.items():
                self.latest.setdefault(name, Latest()).put(client_G, rows, examples_G)
            for client in client_G.tolist():
                self._told.pop(client, None)
                self._told[client] = None
        self._forget()

    def _forget(self) -> None:
        oldest = int(self.rounds[-1]["round"][0]) - self.max_rounds
        while int(self.rounds[0]["round"][0]) <= oldest:
            self._drop_round()
        while len(self.rounds) > 1 and self.nbytes > self.max_bytes:
            self._drop_round()
        if (surplus := self.nbytes - self.max_bytes) > 0:
            self._drop_payloads(surplus)

    def _drop_round(self) -> None:
        columns = self.rounds.pop(0)
        self._drop("rounds", 1)
        self._drop("insights", len(columns["client_id"]))
        for name in _REAL:
            self._drop(name, float(columns[name].sum()))

    def _drop_payloads(self, surplus: int) -> None:
        """Forget payloads of those who told them first, until so many bytes are free."""
        size_of = {name: t.nbytes // len(t.clients) for name, t in self.latest.items()}
        gone: set[int] = set()
        for client in self._told:
            if surplus <= 0:
                break
            gone.add(client)
            surplus -= sum(size for n, size in size_of.items() if self.latest[n].has(client))
        for client in gone:
            del self._told[client]
        for table in self.latest.values():
            table.remove(gone)
        self.latest = {name: table for name, table in self.latest.items() if len(table.clients)}
        self._drop("payloads", len(gone))

    def _drop(self, name: str, amount: float) -> None:
        self.dropped[name] = self.dropped.get(name, 0) + amount

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
        last = self.rounds[-1]
        if all(np.array_equal(c["client_id"], last["client_id"]) for c in self.rounds[:-1]):
            return {name: last[name] for name in wanted}
        backwards = self.rounds[::-1]
        if self._newest is None:
            together = np.concatenate([columns["client_id"] for columns in backwards])
            self._newest = np.unique(together, return_index=True)[1]
        return {n: np.concatenate([c[n] for c in backwards])[self._newest] for n in wanted}

    def collect(self, *names: str) -> tuple[NDArray[np.int64], Columns]:
        """Payload arrays of the clients that have told them all.

        Returns:
            Their ids, ascending, and the arrays, (C, ...) by name; no arrays without clients.
        """
        tables = [self.latest.get(name, Latest()) for name in names]
        told = set.intersection(*(set(table.clients.tolist()) for table in tables))
        if not told:
            return np.zeros(0, dtype=np.int64), {}
        clients = sorted(told)
        arrays = {name: table.of(clients) for name, table in zip(names, tables, strict=True)}
        return np.array(clients, dtype=np.int64), arrays

    def revision(self, *names: str) -> tuple[object, ...]:
        """Equal to an earlier one if payload arrays of these names have not changed since."""
        return tuple(self.latest[n].revision if n in self.latest else None for n in names)

    def examples_of(self, name: str, clients: Sequence[int]) -> NDArray[np.int64]:
        """On how many samples each client trained when it told an array; -1 for who told none."""
        return self.latest.get(name, Latest()).examples_of(clients)

    def payload_of(self, client: int) -> Columns:
        """A client's newest arrays by name."""
        return {n: table.of([client])[0] for n, table in self.latest.items() if table.has(client)}

    def current(self) -> list[Insight]:
        """Each remembered client's newest insight with its payload, by client id."""
        newest = insights_of(self.newest(*SCALARS[1:]))
        return [Insight(**one, payload=self.payload_of(one["client_id"])) for one in newest]

    def state(self) -> tuple[Columns, dict[str, Any]]:
        """Arrays and plain values that `restore` takes."""
        arrays = {
            f"rounds/{place}/{name}": column
            for place, columns in enumerate(self.rounds)
            for name, column in columns.items()
        }
        arrays["told"] = np.array(list(self._told), dtype=np.int64)
        for name, table in self.latest.items():
            arrays[f"latest/{name}/clients"] = table.clients
            arrays[f"latest/{name}/rows"] = table.rows
            arrays[f"latest/{name}/examples"] = table.examples
        return arrays, {"dropped": self.dropped, "names": list(self.latest)}

    def restore(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        rounds: dict[int, Columns] = {}
        for key, array in arrays.items():
            if key.startswith("rounds/"):
                _, place, name = key.split("/")
                rounds.setdefault(int(place), {})[name] = array
        self.rounds, self._newest = [rounds[place] for place in sorted(rounds)], None
        self._told = dict.fromkeys(arrays["told"].tolist())
        self.latest = {name: Latest() for name in values["names"]}
        for name, table in self.latest.items():
            table.put(
                *(arrays[f"latest/{name}/{part}"] for part in ("clients", "rows", "examples"))
            )
        self.dropped = dict(values["dropped"])
