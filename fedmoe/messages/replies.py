"""Replies of many clients as columns; as messages only to whoever looks.

Clients that were answered together have their arrays and numbers stacked. Strategies of ours
read the columns; Flower's read the same replies as ordinary messages.

Letters: C replies, P of them in one part.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Message, MetricRecord
from numpy.typing import NDArray

from fedmoe.data.federation import Ints
from fedmoe.messages import words
from fedmoe.messages.arrays import Numbers, Stack, gather, tensors_of
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.on_demand import MessagesOnDemand
from fedmoe.messages.parts import Part, example_weights, weighted_sum
from fedmoe.models.base import Parameters


class Replies(MessagesOnDemand):
    """Replies to some requests: a list of messages, and columns over all of them.

    Columns do not follow what is changed in a message: `Replies.of(list(replies))` reads the
    messages again.

    Attributes:
        requests: what is replied to, one for each reply; its order is that of the columns.
        parts: replies that are stacked.
        plain: the other replies by place: errors, and messages that came over a network.
    """

    def __init__(
        self, requests: Sequence[Message], parts: Sequence[Part], plain: Mapping[int, Message]
    ) -> None:
        super().__init__(plain)
        self.requests, self.parts, self.plain = requests, parts, dict(plain)

    @classmethod
    def of(cls, replies: Iterable[Message]) -> "Replies":
        """The replies without error, by node id: sums over them then repeat bit for bit.

        Replies that are columns already, as our grids return them, stay what they are.
        """
        if isinstance(replies, Replies):
            failed = [row for row, message in replies.plain.items() if message.has_error()]
            keep = np.full(len(replies), True)
            keep[failed] = False
            return replies.select(np.flatnonzero(keep))
        good = [reply for reply in replies if not reply.has_error()]
        good.sort(key=lambda one: one.metadata.src_node_id)
        return cls(good, [], dict(enumerate(good)))

    def __len__(self) -> int:
        return len(self.requests)

    @cached_property
    def _where(self) -> tuple[Ints, Ints]:
        """The part that each reply is in, and its place there, (C,) each."""
        part_C, place_C = np.zeros((2, len(self)), dtype=np.int64)
        for index, part in enumerate(self.parts):
            part_C[part.rows], place_C[part.rows] = index, np.arange(len(part.rows))
        return part_C, place_C

    def _make(self, place: int) -> Message:
        part_C, place_C = self._where
        content = self.parts[part_C[place]].content(int(place_C[place]))
        return Message(content, reply_to=self.requests[place])

    @property
    def nodes(self) -> list[int]:
        """The C nodes that replied."""
        if isinstance(self.requests, Broadcast):
            return list(self.requests.nodes)
        if len(self.plain) == len(self):
            return [self.plain[row].metadata.src_node_id for row in range(len(self))]
        return [request.metadata.dst_node_id for request in self.requests]

    def select(self, keep: Ints) -> "Replies":
        """Some of the replies, at ascending places (n,)."""
        if len(keep) == len(self):
            return self
        new_place = np.full(len(self), -1)
        new_place[keep] = np.arange(len(keep))
        parts = []
        for part in self.parts:
            kept = np.flatnonzero(new_place[part.rows] >= 0)
            if len(kept):
                parts.append(part.take(kept, new_place[part.rows[kept]]))
        requests = _chosen(self.requests, keep)
        made = {int(new_place[row]): m for row, m in self._made.items() if new_place[row] >= 0}
        plain = {row: made[row] for row in made if keep[row] in self.plain}
        selected = Replies(requests, parts, plain)
        selected._made = made
        return selected

    def has_arrays(self, key: str) -> bool:
        """Whether there are replies, and each has arrays of its own in this record."""
        return (
            len(self) > 0
            and all(isinstance(part.records.get(key), Stack) for part in self.parts)
            and all(key in message.content.array_records for message in self.plain.values())
        )

    def arrays(self, key: str = words.ARRAYS) -> Parameters:
        """The clients' arrays of one record, stacked: (C, ...) by name; not to be changed.

        Raises:
            ValueError: only their mean has come, see `Broadcast.mergeable`.
        """
        if any(key in part.means for part in self.parts):
            raise ValueError(
                f"only the mean of the clients' {key} has come, as the strategy is mergeable"
            )
        if len(self.parts) == 1 and not self.plain:
            part, stack = self.parts[0], cast(Stack, self.parts[0].records[key])
            return (stack if self._in_order(part) else stack.take(part.rows.argsort())).tensors
        pieces = [(part.rows, cast(Stack, part.records[key]).tensors) for part in self.parts]
        if self.plain:
            records = [message.content.array_records[key] for message in self.plain.values()]
            pieces.append((np.fromiter(self.plain, dtype=np.int64), gather(records)))
        if not pieces:
            return {}
        order = torch.from_numpy(np.concatenate([rows for rows, _ in pieces]).argsort())
        return {name: torch.cat([own[name] for _, own in pieces])[order] for name in pieces[0][1]}

    def numbers(self, key: str = words.METRICS) -> Numbers:
        """The clients' numbers of one record, (C,) by name; those names that all have."""
        tables = [(part.rows, part.numbers(key)) for part in self.parts]
        if len(tables) == 1 and not self.plain and self._in_order(self.parts[0]):
            return tables[0][1]
        for row, message in self.plain.items():
            record = message.content.metric_records.get(key, MetricRecord())
            tables.append((np.array([row]), {n: np.asarray(v) for n, v in record.items()}))
        return {
            name: self._column([(rows, table[name]) for rows, table in tables])
            for name in (tables[0][1] if tables else ())
            if all(name in table for _, table in tables)
        }

    def mean(self, weight_C: NDArray[np.float64], key: str = words.ARRAYS) -> Parameters:
        """The weighted sum of the clients' arrays; `weight_C` sums to 1.

        Of a part whose mean alone has come, the clients' weights among themselves must be their
        numbers of examples.

        Raises:
            ValueError: the mean of some clients has come, and the arrays of others; or a mean
                that was taken by other weights.
        """
        merged = [part for part in self.parts if key in part.means]
        if not merged:
            if len(self.parts) == 1 and not self.plain:  # as they lie: no client is moved
                part = self.parts[0]
                stack = cast(Stack, part.records[key])
                return weighted_sum(stack.tensors, weight_C[part.rows], int(part.rows.argmin()))
            return weighted_sum(self.arrays(key), weight_C)
        if len(merged) < len(self.parts) or self.plain:
            raise ValueError(f"only the mean of some clients' {key} has come")
        means = [part.means[key] for part in merged]
        share_P = np.array([weight_C[part.rows].sum() for part in merged])
        for part, share in zip(merged, share_P, strict=True):
            taken = example_weights(part.numbers(words.METRICS)[words.NUM_EXAMPLES])
            if not np.allclose(weight_C[part.rows], share * taken, rtol=1e-6, atol=0):
                raise ValueError(
                    f"only the mean of the clients' {key} by number of examples has come, as the "
                    "strategy is mergeable; it asks for one by other weights"
                )
        stacked = {name: torch.stack([mean[name] for mean in means]) for name in means[0]}
        first = int(np.argmin([part.rows.min() for part in merged]))
        return weighted_sum(stacked, share_P, first)

    def total(self, key: str) -> Parameters:
        """The sum over the clients of one record's arrays, in double precision."""
        rows: list[Parameters] = [
            {name: tensor[None] for name, tensor in tensors_of(record).items()}
            for record in (message.content.array_records[key] for message in self.plain.values())
        ]
        rows += [cast(Stack, part.records[key]).tensors for part in self.parts]
        return {
            name: torch.stack(
                [own[name].sum(dim=0, dtype=torch.float64).cpu() for own in rows]
            ).sum(dim=0)
            for name in rows[0]
        }

    def _in_order(self, part: Part) -> bool:
        return len(part.rows) == len(self) and bool((part.rows[1:] > part.rows[:-1]).all())

    def _column(self, pieces: list[tuple[Ints, NDArray[Any]]]) -> NDArray[Any]:
        dtype = np.result_type(*(values.dtype for _, values in pieces))
        column = np.zeros(len(self), dtype=dtype)
        for rows, values in pieces:
            column[rows] = values
        return column


def _chosen(requests: Sequence[Message], keep: Ints) -> Sequence[Message]:
    return requests.take(keep) if isinstance(requests, Broadcast) else [requests[k] for k in keep]
