"""The insights of one round as they come: judged, and sorted by who told them.

A node keeps the client id that it names first, and no other may name it.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord
from numpy.typing import NDArray

from fedmoe.insight import RoundInsights
from fedmoe.insight.columns import Columns, PayloadColumns
from fedmoe.insight.insight import implausible
from fedmoe.insight.payloads import Payloads
from fedmoe.messages import words
from fedmoe.messages.arrays import Stack, as_arrays
from fedmoe.messages.parts import Part


class Incoming:
    """Accepts good insights.

    Attributes:
        payloads: that there are.
        client_of: the client id that each node gave first.
        asked: names of the payloads that each node was asked for in this round.
        strange: by client, what it contradicts itself in.
    """

    def __init__(self, payloads: Payloads) -> None:
        self.payloads = payloads
        self.client_of: dict[int, int] = {}
        self.asked: dict[int, tuple[str, ...]] = {}
        self.strange: dict[int, str] = {}
        self._round = 0
        self._node_of: dict[int, int] = {}
        # This round's good insights: those that came together, and each node's piece and place.
        self._pieces: list[RoundInsights] = []
        self._accepted: dict[int, tuple[int, int]] = {}

    def begin(self, round: int, connected: Set[int]) -> None:
        """A round begins; a client whose node is gone may come back as another node."""
        self._round, self.asked, self._pieces, self._accepted = round, {}, [], {}
        self.strange = {}
        self.client_of = {n: client for n, client in self.client_of.items() if n in connected}
        self._node_of = {client: node for node, client in self.client_of.items()}

    def check(self, reply: Message) -> None:
        """Accept a reply's insight, or refuse one that is malformed, stale, or somebody else's.

        Raises:
            ValueError: says what is wrong.
        """
        insight = words.get_insight(reply.content)
        trained = _trained_on(reply)
        if trained is not None and 0 <= insight.num_examples != trained:
            self.strange[insight.client_id] = _other_count(insight.num_examples, trained)
            insight = replace(insight, num_examples=trained)
        insight.check(self.payloads)
        node = reply.metadata.src_node_id
        if insight.round != self._round:
            raise ValueError(f"insight of round {insight.round} in round {self._round}")
        if unasked := self._unasked(insight.payload, node):
            raise ValueError(f"insight payload {unasked[0]} was not asked for")
        if not self._accept(node, insight.client_id, len(self._pieces), 0):
            raise ValueError(f"client id {insight.client_id} does not belong to node {node}")
        self._pieces.append(RoundInsights.of([insight]))

    def _unasked(self, arrays: Iterable[str], node: int) -> list[str]:
        """Payloads that a node was not asked for."""
        asked = self.asked.get(node, ())
        return [name for name in self.payloads.told(arrays) if name not in asked]

    def _accept(self, node: int, client: int, piece: int, place: int) -> bool:
        """Take a node's insight, unless it speaks for another's client."""
        if self._node_of.get(client, node) != node or self.client_of.get(node, client) != client:
            return False
        self._node_of[client], self.client_of[node] = node, client
        self._accepted[node] = piece, place
        return True

    def doubtful(self, part: Part, nodes: Sequence[int]) -> NDArray[np.bool_]:
        """Accept the insights of stacked replies, but for those that `check` is to judge.

        Args:
            part: the replies, P of them.
            nodes: whose they are.

        Returns:
            (P,) which are left to `check`.
        """
        numbers, payload = words.get_insights(part.records), part.records.get(words.PAYLOAD)
        if numbers is None or not isinstance(payload, Stack | None):
            return np.full(len(nodes), True)
        arrays = as_arrays(payload.tensors) if payload else {}
        trained_C = part.numbers(words.METRICS).get(words.NUM_EXAMPLES)
        if trained_C is not None:
            numbers = self._corrected(numbers, trained_C)
        doubtful = implausible(numbers, arrays, self.payloads)
        doubtful |= numbers["round"] != self._round
        payloads = [PayloadColumns(numbers["client_id"], arrays)] if arrays else []
        self._pieces.append(RoundInsights(numbers, payloads))
        piece, clients = len(self._pieces) - 1, numbers["client_id"].tolist()
        for place in np.flatnonzero(~doubtful).tolist():
            node = nodes[place]
            unasked = arrays and self._unasked(arrays, node)
            doubtful[place] = unasked or not self._accept(node, clients[place], piece, place)
        return doubtful

    def _corrected(self, numbers: Columns, trained_C: NDArray[Any]) -> Columns:
        """With as many samples as the replies count for; who said something else is noted."""
        other_C = (numbers["num_examples"] != trained_C) & (numbers["num_examples"] >= 0)
        if not other_C.any():
            return numbers
        columns = (numbers["client_id"], numbers["num_examples"], trained_C)
        for client, said, trained in zip(*(c[other_C].tolist() for c in columns), strict=True):
            self.strange[client] = _other_count(said, trained)
        right_C = np.where(other_C, trained_C, numbers["num_examples"])
        return {**numbers, "num_examples": right_C}

    def accepted(self, node: int) -> bool:
        """Whether a node's insight of this round has been accepted."""
        return node in self._accepted

    def taken(self, nodes: Sequence[int]) -> list[tuple[list[int], RoundInsights]]:
        """The accepted insights of some nodes, those that came together each with their nodes."""
        came: dict[int, tuple[list[int], list[int]]] = {}  # by piece: nodes, and places there
        for node in nodes:
            piece, place = self._accepted[node]
            own = came.setdefault(piece, ([], []))
            own[0].append(node)
            own[1].append(place)
        return [(some, self._pieces[p].take(places)) for p, (some, places) in came.items()]


def _trained_on(reply: Message) -> int | None:
    """How many samples a reply counts for, if it says."""
    metrics = reply.content.get(words.METRICS)
    found = metrics.get(words.NUM_EXAMPLES) if isinstance(metrics, MetricRecord) else None
    return found if isinstance(found, int) else None


def _other_count(said: int, trained: int) -> str:
    return f"num_examples={said}, but the reply counts for {trained}"
