"""A round's insights as columns, so that no object is made for each client.

Letters: C clients that told something, G of them whose payloads hold the same arrays.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmoe.insight.insight import SCALARS, WHOLE, Insight

Columns = dict[str, NDArray[Any]]


class PayloadColumns(NamedTuple):
    """Payloads of the same arrays.

    Attributes:
        client_G: whose they are.
        arrays: (G, ...) by name; not to be changed.
    """

    client_G: NDArray[np.int64]
    arrays: Columns


@dataclass(frozen=True)
class RoundInsights:
    """What clients told in one round; iterating makes the insights one by one.

    Attributes:
        numbers: each of `SCALARS`, (C,), ascending by client; whole ones are int64, the others
            float64.
        payloads: of those clients that told any.
    """

    numbers: Columns
    payloads: Sequence[PayloadColumns] = ()

    @classmethod
    def of(cls, insights: Iterable[Insight]) -> "RoundInsights":
        """From insights of one round, one a client."""
        given = list(insights)
        numbers = {name: np.array([getattr(one, name) for one in given]) for name in SCALARS}
        payloads = [
            PayloadColumns(np.array([one.client_id]), {n: a[None] for n, a in one.payload.items()})
            for one in given
            if one.payload
        ]
        return cls.joined([cls(numbers, payloads)])

    @classmethod
    def joined(cls, pieces: Sequence["RoundInsights"]) -> "RoundInsights":
        """All of several clients' insights, in whatever order they are."""
        together = {
            name: np.concatenate([piece.numbers[name] for piece in pieces] or [np.zeros(0)])
            for name in SCALARS
        }
        order_C = together["client_id"].argsort(kind="stable")
        numbers = {
            name: column[order_C].astype(np.int64 if name in WHOLE else np.float64, copy=False)
            for name, column in together.items()
        }
        return cls(numbers, [payload for piece in pieces for payload in piece.payloads])

    def __len__(self) -> int:
        return len(self.numbers["client_id"])

    def __iter__(self) -> Iterator[Insight]:
        payload_of = {
            client: {name: array[row] for name, array in arrays.items()}
            for client_G, arrays in self.payloads
            for row, client in enumerate(client_G.tolist())
        }
        for one in insights_of(self.numbers):
            yield Insight(**one, payload=payload_of.get(one["client_id"], {}))

    def take(self, place_C: Sequence[int]) -> "RoundInsights":
        """Some of the clients, by their places, in that order; each told the same, or none did.

        Raises:
            ValueError: their payloads differ.
        """
        if len(self.payloads) > 1:
            raise ValueError("clients with different payloads cannot be taken by their places")
        whole = np.array_equal(place_C, np.arange(len(self)))
        numbers = self.numbers if whole else {n: c[place_C] for n, c in self.numbers.items()}
        payloads = [
            PayloadColumns(numbers["client_id"], arrays if whole else _rows(arrays, place_C))
            for _, arrays in self.payloads
        ]
        return RoundInsights(numbers, payloads)

    def lines(self, owner: Mapping[str, str]) -> dict[str, list[Any]]:
        """Columns of `insights.jsonl`: the numbers, and `payload_bytes`, bytes by payload.

        Args:
            owner: name of the payload that each array belongs to.
        """
        sizes: dict[int, dict[str, int]] = {}
        for client_G, arrays in self.payloads:
            own: dict[str, int] = {}
            for name, array in arrays.items():
                own[owner[name]] = own.get(owner[name], 0) + array[0].nbytes
            sizes |= dict.fromkeys(client_G.tolist(), own)
        columns = {name: column.tolist() for name, column in self.numbers.items()}
        none: dict[str, int] = {}
        return {**columns, "payload_bytes": [sizes.get(c, none) for c in columns["client_id"]]}


def insights_of(numbers: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, Any]]:
    """The numbers of one insight after the other."""
    lists = [numbers[name].tolist() for name in SCALARS]
    return (dict(zip(SCALARS, row, strict=True)) for row in zip(*lists, strict=True))


def _rows(arrays: Mapping[str, NDArray[Any]], place_C: Sequence[int]) -> Columns:
    return {name: array[place_C] for name, array in arrays.items()}
