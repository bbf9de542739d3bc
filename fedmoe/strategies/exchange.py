"""The server's side of insight exchange, apart from any strategy.

It asks for insights, lets the MetaLearner learn, and hands out guidance. What follows from a
client's data alone is asked for once, and again when its number of samples changes; parts of
guidance are told once, and again when they change or are lost.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmoe.data.federation import Ints
from fedmoe.insight import Guidance, MetaLearner, RoundInsights
from fedmoe.insight.payloads import Payloads
from fedmoe.messages import words
from fedmoe.messages.seams import RecordType
from fedmoe.strategies.incoming import Incoming

_LOG = logging.getLogger("fedmoe.strategies.exchange")
_NOTHING: Mapping[str, NDArray[Any]] = {}
_OTHER = np.zeros(0)  # stands for a part that a node holds, and that is not advised any more


class _Asked(NamedTuple):
    """What a node was asked for in this round, and is to be guided by afterwards."""

    payloads: tuple[str, ...]
    guidance: Guidance
    records: Mapping[str, RecordType]


class Exchange:
    """Insights up, guidance down.

    Attributes:
        meta_learner: learns from the insights.
        payloads: that there are.
        wanted: names of those that are asked for.
        incoming: judges what comes, and knows which node is which client.
        told: the parts of guidance that each node has.
        insights: the last round's, ascending by client.
        findings: what the MetaLearner made of them.
    """

    def __init__(
        self, meta_learner: MetaLearner, payloads: Payloads, wanted: Sequence[str] = ()
    ) -> None:
        self.meta_learner, self.payloads = meta_learner, payloads
        self.wanted = payloads.fitting([*wanted, *meta_learner.reads])
        parts = ((name, payloads.by_name[name].made_by) for name in self.wanted)
        self._made_by = {name: part for name, part in parts if part is not None}
        self.incoming = Incoming(payloads)
        self.told: dict[int, Mapping[str, NDArray[Any]]] = {}
        self.insights = RoundInsights.of([])
        self.findings: dict[str, Any] = {}
        self._round = 0
        self._examples_of: dict[int, int] = {}  # by client, as its last insight has it
        self._asked: dict[int, _Asked] = {}
        self._place_of: dict[int, int] = {}  # in the grid
        self._has_warned = False
        self._known_as: dict[int, int] = {}  # by node, the id that its guidance was asked for with

    def begin(self, round: int, connected: Sequence[int]) -> None:
        """A round begins; a client whose node is gone may come back as another node."""
        here = set(connected)
        self.incoming.begin(round, here)
        self._round, self._asked, self._known_as = round, {}, {}
        self._place_of = {node: place for place, node in enumerate(connected)}
        self.told = {n: parts for n, parts in self.told.items() if n in here}

    def _name(self, node: int) -> int:
        """A node's client id, or a stand-in below 0, which goes by the grid's order."""
        return self.incoming.client_of.get(node, -1 - self._place_of.get(node, 0))

    def select(self, nodes: Sequence[int], count: int) -> list[int] | None:
        """Who is to train of those that are there, in their order, if a policy says so."""
        clients = np.array([self._name(node) for node in nodes], dtype=np.int64)
        places = self.meta_learner.select(self._round, clients, count)
        return None if places is None else [nodes[place] for place in np.sort(places).tolist()]

    def clusters(self, nodes: Sequence[int]) -> Ints | None:
        """Which nodes' data follow one rule, (N,), if a policy says so."""
        clients = np.array([self._name(node) for node in nodes], dtype=np.int64)
        return self.meta_learner.clusters(clients)

    def ask(self, nodes: Sequence[int]) -> list[Mapping[str, RecordType]]:
        """What each node is sent: what is asked for, and the guidance that it does not have.

        Nodes that are sent the same share the object, so that it is made and read once.
        """
        clients = [self._name(node) for node in nodes]
        self._known_as |= zip(nodes, clients, strict=True)
        seen: dict[tuple[Any, ...], _Asked] = {}
        made: dict[tuple[Any, ...], _Asked] = {}
        for node, client, payloads in zip(nodes, clients, self._lacking(clients), strict=True):
            guidance, has = self.meta_learner.guidance(client), self.told.get(node, _NOTHING)
            if self._made_by:
                payloads = self._with_parts(payloads, guidance, has)
            key = payloads, id(guidance), id(has)
            if key not in seen:
                parts = {n: a for n, a in guidance.parts.items() if has.get(n) is not a}
                same = payloads, id(guidance), *parts
                if same not in made:
                    records = words.guidance_records(parts, guidance.numbers)
                    request = {words.INSIGHT: words.insight_request(payloads)}
                    made[same] = _Asked(payloads, guidance, {**request, **records})
                seen[key] = made[same]
            self._asked[node] = seen[key]
            self.incoming.asked[node] = seen[key].payloads
        return [self._asked[node].records for node in nodes]

    def _lacking(self, clients: Sequence[int]) -> list[tuple[str, ...]]:
        """Which of the wanted payloads each client is to tell.

        What of its data is not known, and what of its model is due.
        """
        now_C = np.array([self._examples_of.get(client, -1) for client in clients])
        lacks_CW = np.empty((len(clients), len(self.wanted)), dtype=bool)
        for column, name in enumerate(self.wanted):
            payload = self.payloads.by_name[name]
            if payload.of_data:
                array = next(iter(payload.shapes))
                told_C = self.meta_learner.memory.examples_of(array, clients)
                lacks_CW[:, column] = (told_C < 0) | (told_C != now_C)
            else:
                lacks_CW[:, column] = payload.due(self._round)
        rows = [tuple(row) for row in lacks_CW.tolist()]
        chosen = {
            row: tuple(n for n, lacks in zip(self.wanted, row, strict=True) if lacks)
            for row in set(rows)
        }
        return [chosen[row] for row in rows]

    def _with_parts(
        self, payloads: Sequence[str], guidance: Guidance, has: Mapping[str, NDArray[Any]]
    ) -> tuple[str, ...]:
        """Of payloads that follow from guidance: those that have it, and that of new guidance."""
        asked = set(payloads)
        for name, part in self._made_by.items():
            if part not in guidance.parts:
                asked.discard(name)
            elif guidance.parts[part] is not has.get(part):
                asked.add(name)
        return self.payloads.fitting(asked)

    def observe(self, round: int, nodes: Sequence[int]) -> None:
        """Let the MetaLearner observe what some nodes' accepted replies told."""
        answered = set(nodes)
        taken = self.incoming.taken(nodes)
        for some, insights in taken:
            self._note(some, insights)
        self.insights = RoundInsights.joined([insights for _, insights in taken])
        client_of = {
            name: self.incoming.client_of[node] if node in answered else None
            for node, name in self._known_as.items()
        }
        self.findings = self.meta_learner.observe(
            round, self.insights, client_of, self.incoming.strange
        )
        memory = self.meta_learner.memory
        if memory.dropped.get("payloads") and not self._has_warned:
            self._has_warned = True
            _LOG.warning(
                "insight.memory_bytes=%d has no room for all clients' payloads: what is forgotten "
                "is asked for again each time; raise it", memory.max_bytes,
            )  # fmt: skip

    def _note(self, nodes: Sequence[int], insights: RoundInsights) -> None:
        """What nodes have been told, unless they have lost it; and what they have trained on."""
        columns = (insights.numbers[n].tolist() for n in ("client_id", "num_examples"))
        self._examples_of |= zip(*columns, strict=True)
        held = insights.numbers["guidance_parts"].tolist()
        for node, count in zip(nodes, held, strict=True):
            has = self.told.get(node, _NOTHING)
            parts = self._asked[node].guidance.parts if node in self._asked else _NOTHING
            if has.keys() - parts.keys():  # what is no longer advised is still held
                parts = {**has, **parts}
            self.told[node] = parts if count == len(parts) else _NOTHING

    def lines(self) -> dict[str, list[Any]]:
        """The last round's insights as columns of `insights.jsonl`."""
        return self.insights.lines(self.payloads.owner)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """What a checkpoint keeps."""
        arrays, values = self.meta_learner.state()
        # Of what a node was told, what is not advised any more is only known to be something else.
        names = sorted({name for parts in self.told.values() for name in parts})
        held = [
            [
                (name in parts) + (name in parts and advice.get(name) is parts[name])
                for name in names
            ]
            for parts, advice in ((parts, self._advice(n)) for n, parts in self.told.items())
        ]
        arrays |= {
            "exchange/client_of": np.array(list(self.incoming.client_of.items()), dtype=np.uint64),
            "exchange/examples_of": np.array(list(self._examples_of.items()), dtype=np.int64),
            "exchange/told": np.array(list(self.told), dtype=np.uint64),
            "exchange/held": np.array(held, dtype=np.int8).reshape(len(held), len(names)),
        }
        return arrays, {"meta_learner": values, "names": names}

    def restore(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.meta_learner.restore(arrays, values["meta_learner"])
        self.incoming.client_of = dict(arrays["exchange/client_of"].reshape(-1, 2).tolist())
        self._examples_of = dict(arrays["exchange/examples_of"].reshape(-1, 2).tolist())
        self.told = {}
        held = arrays["exchange/held"].tolist()
        for node, row in zip(arrays["exchange/told"].tolist(), held, strict=True):
            advice, has = self._advice(node), zip(values["names"], row, strict=True)
            # 0 for a part that is not held, 1 for another, 2 for the one that is advised.
            self.told[node] = {n: advice[n] if code == 2 else _OTHER for n, code in has if code}

    def _advice(self, node: int) -> Mapping[str, NDArray[Any]]:
        """The parts of guidance that a node should have by now."""
        return self.meta_learner.guidance(self.incoming.client_of.get(node, -1)).parts
