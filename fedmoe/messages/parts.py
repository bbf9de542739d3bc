"""Replies that hold the same records, stacked; and the sums that strategies take of them.

Letters: C clients, P replies of one part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedmoe.data.federation import Ints
from fedmoe.messages.arrays import CohortRecord, Numbers, Records, Stack
from fedmoe.messages.seams import unchecked_metrics, unchecked_records
from fedmoe.models.base import Parameters


@dataclass(frozen=True)
class Part:
    """Replies that hold the same records, stacked.

    Attributes:
        rows: (P,) their places among all replies.
        records: by key, arrays and numbers with P in front.
        means: by key, arrays of which only the mean has come, weighted by number of examples.
    """

    rows: Ints
    records: Records
    means: dict[str, Parameters] = field(default_factory=dict)

    def numbers(self, key: str) -> Numbers:
        """The numbers of one record; none if the replies have no such record."""
        record = self.records.get(key)
        return {} if record is None or isinstance(record, Stack) else record

    @property
    def bytes_per_reply(self) -> int:
        """What each reply weighs, with the arrays of which only the mean was kept."""
        means = [Stack({name: t[None] for name, t in m.items()}) for m in self.means.values()]
        total = 0
        for record in [*self.records.values(), *means]:
            if isinstance(record, Stack):
                total += record.bytes_per_client
            else:
                total += sum(len(name.encode()) + 8 for name in record)
        return total

    def content(self, place: int) -> RecordDict:
        """One reply's records; arrays stay rows of their stack until they are read."""
        return unchecked_records(
            {
                key: CohortRecord(record, place)
                if isinstance(record, Stack)
                else unchecked_metrics({name: v[place].item() for name, v in record.items()})
                for key, record in self.records.items()
            }
        )

    def take(self, places: Ints, rows: Ints) -> "Part":
        """Some of the replies, at new places among all.

        Raises:
            ValueError: a reply is to be left out whose arrays are in the mean.
        """
        if self.means and len(places) < len(self.rows):
            raise ValueError("a reply that was merged cannot be left out")
        return Part(
            rows,
            {
                key: record.take(places)
                if isinstance(record, Stack)
                else {name: values[places] for name, values in record.items()}
                for key, record in self.records.items()
            },
            self.means,
        )


def example_weights(count_C: NDArray[Any]) -> NDArray[np.float64]:
    """Each client's share of the examples, (C,); equal shares if nobody has any."""
    total = count_C.sum()
    return count_C / total if total > 0 else np.full(len(count_C), 1 / len(count_C))


def weighted_sum(
    stacked: Mapping[str, Tensor], weight_C: NDArray[np.float64], first: int = 0
) -> Parameters:
    """Sum over the client axis; whole numbers, which have no mean, are those of client `first`.

    The sums lie on the CPU, wherever the clients trained: the server's side is there.
    """
    weight = torch.from_numpy(weight_C)
    return {
        name: torch.tensordot(weight.to(value), value, dims=1).cpu()
        if value.is_floating_point()
        else value[first].cpu()
        for name, value in stacked.items()
    }
