"""Insight exchange: clients tell what they learned, not what they weigh.

Each client trains a model of its own and returns an insight (numbers about its training, and
payloads such as class prototypes or sufficient statistics). The server remembers all insights;
a MetaLearner turns them into guidance that changes the next round's local training. No weights
travel in either direction.

The idea is that of the Scarcity framework's stage 3, whose server broadcast one unchanged model
and whose MetaLearner was never read by a client; what guidance can act at all follows from
`docs/insight.md`.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe.data.federation import Task
from fedmoe.insight import Insight, Memory, MetaLearner
from fedmoe.insight.insight import implausible
from fedmoe.messages import words
from fedmoe.messages.arrays import Stack, as_arrays
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import RecordType
from fedmoe.schema import InsightConfig
from fedmoe.strategies.local import Local

_LOG = logging.getLogger("fedmoe.strategies.insight.InsightExchange")


class InsightExchange(Local):
    """Sampling as in FedAvg; what travels is insights up and guidance down.

    Attributes:
        config: payloads and their disclosure rule.
        meta_learner: learns from the insights.
        task: what an insight's payloads are checked against.
        client_of: the client id that each node gave first; it must keep to it.
        new_insights: the last round's insights, for the run's records.
        findings: what the MetaLearner made of them, see `insight.meta_learner.aggregate`.
    """

    def __init__(
        self, config: InsightConfig, meta_learner: MetaLearner, task: Task, **options: Any
    ) -> None:
        super().__init__(fraction_train=config.fraction_train, **options)
        self.config, self.meta_learner, self.task = config, meta_learner, task
        self.client_of: dict[int, int] = {}
        self.new_insights: list[Insight] = []
        self.findings: dict[str, Any] = {}
        self._round = 0
        self._node_of: dict[int, int] = {}
        self._accepted: dict[int, Insight] = {}

    @property
    def memory(self) -> Memory:
        """All insights so far."""
        return self.meta_learner.memory

    @override
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for an insight, and send along what the MetaLearner advises."""
        self._round, self._accepted = server_round, {}
        self._forget_lost_nodes(set(grid.get_node_ids()))
        config[words.WANTED_PAYLOADS] = ",".join(self.config.payloads)
        config[words.PROTOTYPE_MIN_COUNT] = self.config.prototype_min_count
        return super().configure_train(server_round, arrays, config, grid)

    @override
    def personal_records(self, nodes: Sequence[int]) -> list[Mapping[str, RecordType]] | None:
        """Each client's own guidance."""
        # Clients may share a guidance; its records are then made once, and told apart by identity.
        told = [self.meta_learner.guidance(self.client_of.get(node, -1)) for node in nodes]
        records: dict[int, Mapping[str, RecordType]] = {}
        for guidance in told:
            if id(guidance) not in records:
                record = words.guidance_record(guidance)
                records[id(guidance)] = {} if record is None else {words.GUIDANCE: record}
        return [records[id(guidance)] for guidance in told]

    def _forget_lost_nodes(self, connected: set[int]) -> None:
        """A client whose node is gone may come back as another node, after a restart."""
        self.client_of = {n: client for n, client in self.client_of.items() if n in connected}
        self._node_of = {client: node for node, client in self.client_of.items()}

    def check_reply(self, reply: Message) -> None:
        """Accept a reply's insight, or refuse one that is malformed, stale, or somebody else's.

        Raises:
            ValueError: says what is wrong.
        """
        if words.ARRAYS in reply.content:
            raise ValueError("weights must not travel in insight exchange")
        insight = words.get_insight(reply.content)
        insight.check(self.task)
        node = reply.metadata.src_node_id
        if insight.round != self._round:
            raise ValueError(f"insight of round {insight.round} in round {self._round}")
        if not self._accept(node, insight):
            raise ValueError(f"client id {insight.client_id} does not belong to node {node}")

    def _accept(self, node: int, insight: Insight) -> bool:
        """Take a node's insight, unless it speaks for another's client."""
        owner = self._node_of.setdefault(insight.client_id, node)
        if owner != node or self.client_of.get(node, insight.client_id) != insight.client_id:
            return False
        self.client_of[node] = insight.client_id
        self._accepted[node] = insight
        return True

    def doubtful_replies(self, part: Part, nodes: Sequence[int]) -> NDArray[np.bool_]:
        """Accept the insights of stacked replies, but for those that `check_reply` is to judge.

        Args:
            part: the replies, P of them.
            nodes: whose they are.

        Returns:
            (P,) which are left to `check_reply`.
        """
        numbers, payload = words.get_insights(part.records), part.records.get(words.PAYLOAD)
        if numbers is None or words.ARRAYS in part.records or not isinstance(payload, Stack | None):
            return np.full(len(nodes), True)
        arrays = as_arrays(payload.tensors) if payload else {}
        doubtful = implausible(numbers, arrays, self.task)
        doubtful |= numbers["round"] != self._round
        fields = {name: column.tolist() for name, column in numbers.items()}
        for place in np.flatnonzero(~doubtful).tolist():
            insight = Insight(
                **{name: column[place] for name, column in fields.items()},
                payload={name: array[place] for name, array in arrays.items()},
            )
            doubtful[place] = not self._accept(nodes[place], insight)
        return doubtful

    @override
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the MetaLearner observe the round's insights."""
        came = Replies.of(replies)
        good = came.select(
            np.flatnonzero(
                [
                    node in self._accepted or self._is_good(came[row])
                    for row, node in enumerate(came.nodes)
                ]
            )
        )
        accepted = [self._accepted[node] for node in good.nodes]
        self.new_insights = sorted(accepted, key=lambda one: one.client_id)
        self.findings = self.meta_learner.observe(server_round, self.new_insights)
        return super().aggregate_train(server_round, good)

    def _is_good(self, reply: Message) -> bool:
        """Whether a reply may be learned from; also holds where no guard stands before us."""
        try:
            self.check_reply(reply)
        except ValueError as error:
            _LOG.warning("node %d: %s", reply.metadata.src_node_id, error)
            return False
        return True

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """What a checkpoint keeps."""
        arrays, values = self.memory.state()
        clients = {str(node): client for node, client in self.client_of.items()}
        return arrays, {
            **values, "client_of": clients, "summaries": self.meta_learner.history
        }  # fmt: skip

    def restore(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.memory.restore(arrays, values)
        self.client_of = {int(node): client for node, client in values["client_of"].items()}
        self.meta_learner.restore(list(values["summaries"]))
