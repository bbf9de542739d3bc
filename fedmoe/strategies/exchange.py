"""The server's side of insight exchange, apart from any strategy.

It asks for insights, judges what comes, lets the MetaLearner learn, and hands out guidance. What
follows from a client's data alone is asked for once, and again when its number of samples
changes; parts of guidance are told once, and again when they change or are lost.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from fedmoe.insight import Guidance, Insight, MetaLearner
from fedmoe.insight.insight import implausible
from fedmoe.insight.payloads import Payloads
from fedmoe.messages import words
from fedmoe.messages.arrays import Stack, as_arrays
from fedmoe.messages.parts import Part
from fedmoe.messages.seams import RecordType


class Exchange:
    """Insights up, guidance down.

    Attributes:
        meta_learner: learns from the insights.
        payloads: that there are.
        wanted: names of those that are asked for.
        client_of: the client id that each node gave first; it must keep to it.
        told: the parts of guidance that each node has.
        insights: the last round's, ascending by client.
        findings: what the MetaLearner made of them.
    """

    def __init__(
        self, meta_learner: MetaLearner, payloads: Payloads, wanted: Sequence[str] = ()
    ) -> None:
        self.meta_learner, self.payloads = meta_learner, payloads
        self.wanted = payloads.fitting([*wanted, *meta_learner.reads])
        self.client_of: dict[int, int] = {}
        self.told: dict[int, Mapping[str, NDArray[Any]]] = {}
        self.insights: list[Insight] = []
        self.findings: dict[str, Any] = {}
        self._round = 0
        self._node_of: dict[int, int] = {}
        self._examples_of: dict[int, int] = {}  # by client, when its data were last told of
        self._asked: dict[int, tuple[str, ...]] = {}
        self._telling: dict[int, Guidance] = {}
        self._accepted: dict[int, Insight] = {}
        self._place_of: dict[int, int] = {}
        self._known_as: dict[int, int] = {}  # by node, the id that its guidance was asked for with

    def begin(self, round: int, connected: Sequence[int]) -> None:
        """A round begins; a client whose node is gone may come back as another node."""
        self._round, self._accepted, self._known_as = round, {}, {}
        self._place_of = {node: place for place, node in enumerate(connected)}
        here = set(connected)
        self.client_of = {n: client for n, client in self.client_of.items() if n in here}
        self.told = {n: parts for n, parts in self.told.items() if n in here}
        self._node_of = {client: node for node, client in self.client_of.items()}

    def _name(self, node: int) -> int:
        """A node's client id, or a stand-in below 0, which goes by the grid's order."""
        return self.client_of.get(node, -1 - self._place_of.get(node, 0))

    def select(self, nodes: Sequence[int], count: int) -> list[int] | None:
        """Who is to train of those that are there, in their order, if a policy says so."""
        clients = np.array([self._name(node) for node in nodes], dtype=np.int64)
        places = self.meta_learner.select(self._round, clients, count)
        return None if places is None else [nodes[place] for place in np.sort(places).tolist()]

    def ask(self, nodes: Sequence[int]) -> list[Mapping[str, RecordType]]:
        """What each node is sent: what is asked for, and the guidance that it does not have.

        Nodes that are sent the same share the object, so that it is made and read once.
        """
        made: dict[tuple[Any, ...], Mapping[str, RecordType]] = {}
        records = []
        for node in nodes:
            payloads = self._payloads_for(node)
            name = self._known_as[node] = self._name(node)
            guidance = self.meta_learner.guidance(name)
            has = self.told.get(node, {})
            new = tuple(n for n, array in guidance.parts.items() if has.get(n) is not array)
            self._asked[node], self._telling[node] = payloads, guidance
            key = payloads, id(guidance), new
            if key not in made:
                parts = {name: guidance.parts[name] for name in new}
                made[key] = {
                    words.INSIGHT: words.insight_request(payloads),
                    **words.guidance_records(parts, guidance.numbers),
                }
            records.append(made[key])
        return records

    def _payloads_for(self, node: int) -> tuple[str, ...]:
        client = self.client_of.get(node, -1)
        kept = self.payloads.told(self.meta_learner.memory.payload_of.get(client, {}))
        known = set(kept) if client in self._examples_of else set()
        return tuple(
            name for name in self.wanted
            if name not in known or not self.payloads.by_name[name].of_data
        )  # fmt: skip

    def check(self, reply: Message) -> None:
        """Accept a reply's insight, or refuse one that is malformed, stale, or somebody else's.

        Raises:
            ValueError: says what is wrong.
        """
        insight = words.get_insight(reply.content)
        insight.check(self.payloads)
        node = reply.metadata.src_node_id
        if insight.round != self._round:
            raise ValueError(f"insight of round {insight.round} in round {self._round}")
        self._check_payload(node, insight.payload)
        if not self._accept(node, insight):
            raise ValueError(f"client id {insight.client_id} does not belong to node {node}")

    def _check_payload(self, node: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        asked = set(self._asked.get(node, ()))
        if unasked := sorted(set(self.payloads.told(arrays)) - asked):
            raise ValueError(f"insight payload {unasked[0]} was not asked for")

    def _accept(self, node: int, insight: Insight) -> bool:
        """Take a node's insight, unless it speaks for another's client."""
        owner = self._node_of.setdefault(insight.client_id, node)
        if owner != node or self.client_of.get(node, insight.client_id) != insight.client_id:
            return False
        self.client_of[node] = insight.client_id
        self._accepted[node] = insight
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
        doubtful = implausible(numbers, arrays, self.payloads)
        doubtful |= numbers["round"] != self._round
        told = set(self.payloads.told(arrays))
        fields = {name: column.tolist() for name, column in numbers.items()}
        for place in np.flatnonzero(~doubtful).tolist():
            insight = Insight(
                **{name: column[place] for name, column in fields.items()},
                payload={name: array[place] for name, array in arrays.items()},
            )
            node = nodes[place]
            asked = told <= set(self._asked.get(node, ()))
            doubtful[place] = not asked or not self._accept(node, insight)
        return doubtful

    def accepted(self, node: int) -> bool:
        """Whether a node's insight of this round has been accepted."""
        return node in self._accepted

    def observe(self, round: int, nodes: Sequence[int]) -> None:
        """Let the MetaLearner observe what some nodes' accepted replies told."""
        came = {node: self._accepted[node] for node in nodes}
        for node, insight in came.items():
            self._note(node, insight)
        self.insights = sorted(came.values(), key=lambda one: one.client_id)
        client_of = {
            name: came[node].client_id if node in came else None
            for node, name in self._known_as.items()
        }
        self.findings = self.meta_learner.observe(round, self.insights, client_of)

    def _note(self, node: int, insight: Insight) -> None:
        """What a node has been told, unless it has lost it; and what its payloads were made of."""
        parts = self._telling[node].parts if node in self._telling else {}
        self.told[node] = parts if insight.guidance_parts == len(parts) else {}
        client, examples = insight.client_id, insight.num_examples
        if insight.payload:
            self._examples_of[client] = examples
        elif self._examples_of.get(client, examples) != examples:
            del self._examples_of[client]  # other data: all is asked for again

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """What a checkpoint keeps."""
        arrays, values = self.meta_learner.state()
        return arrays, {
            "meta_learner": values,
            "client_of": [[node, client] for node, client in self.client_of.items()],
            "examples_of": [[client, n] for client, n in self._examples_of.items()],
            "told": [[node, sorted(parts)] for node, parts in self.told.items()],
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.meta_learner.restore(arrays, values["meta_learner"])
        self.client_of = dict(values["client_of"])
        self._examples_of = dict(values["examples_of"])
        self.told = {}
        for node, names in values["told"]:
            parts = self.meta_learner.guidance(self.client_of.get(node, -1)).parts
            self.told[node] = {name: parts[name] for name in names if name in parts}
