"""Insight exchange: clients tell what they learned, not what they weigh.

Each client trains a model of its own and returns an insight (numbers about its training, and
payloads such as class prototypes or sufficient statistics). The server remembers all insights;
a MetaLearner turns them into guidance that changes the next round's local training. No weights
travel in either direction. `with_insights` adds the same to any strategy that does send weights.

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

from fedmoe.data.federation import Ints
from fedmoe.insight import Insight, MetaLearner
from fedmoe.messages import words
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import RecordType
from fedmoe.strategies.base import StackedFedAvg, connected
from fedmoe.strategies.exchange import Exchange
from fedmoe.strategies.local import Local

_LOG = logging.getLogger("fedmoe.strategies.insight.Insights")


class Insights(StackedFedAvg):
    """A strategy's clients tell insights, and are told guidance; to be mixed in first.

    Attributes:
        exchange: the insights' side of it.
        loose_records: those that replies may have or not: only who was asked for payloads tells
            any.
    """

    loose_records = frozenset({words.PAYLOAD})

    def __init__(self, *, exchange: Exchange, **options: Any) -> None:
        super().__init__(**options)
        self.exchange = exchange

    @property
    def meta_learner(self) -> MetaLearner:
        """What learns from the insights."""
        return self.exchange.meta_learner

    @property
    def new_insights(self) -> list[Insight]:
        """The last round's, ascending by client."""
        return list(self.exchange.insights)

    @property
    def insight_lines(self) -> dict[str, list[Any]]:
        """The last round's as columns, for the run's records."""
        return self.exchange.lines()

    @property
    def findings(self) -> dict[str, Any]:
        """What the MetaLearner made of them, for the run's records."""
        return self.exchange.findings

    @override
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for insights besides."""
        self.exchange.begin(server_round, connected(grid))
        return super().configure_train(server_round, arrays, config, grid)

    @override
    def choose(self, server_round: int, nodes: Sequence[int], count: int) -> Sequence[int]:
        """Whom a policy of the MetaLearner selects, or as without insights."""
        chosen = self.exchange.select(nodes, count)
        return super().choose(server_round, nodes, count) if chosen is None else chosen

    @override
    def personal_records(self, nodes: Sequence[int]) -> list[Mapping[str, RecordType]] | None:
        """Each client's own request and guidance."""
        own, others = self.exchange.ask(nodes), super().personal_records(nodes)
        if others is None:
            return own
        return [{**other, **mine} for other, mine in zip(others, own, strict=True)]

    @override
    def known_clusters(self, nodes: Sequence[int]) -> Ints | None:
        """Those that a policy of the MetaLearner has found."""
        return self.exchange.clusters(nodes)

    def check_reply(self, reply: Message) -> None:
        """Refuse what the strategy refuses, and a reply with an insight that nobody can believe.

        Raises:
            ValueError: says what is wrong.
        """
        if hasattr(super(), "check_reply"):
            super().check_reply(reply)  # type: ignore[misc]
        self.exchange.incoming.check(reply)

    def doubtful_replies(self, part: Part, nodes: Sequence[int]) -> NDArray[np.bool_]:
        """Which stacked replies, (P,), `check_reply` is to look at."""
        doubtful = self.exchange.incoming.doubtful(part, nodes)
        if hasattr(super(), "check_reply"):
            doubtful |= super().doubtful_replies(part, nodes)  # type: ignore[misc]
        return doubtful

    @override
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the MetaLearner observe the round's insights, and go on as without them."""
        came = Replies.of(replies)
        known = [
            self.exchange.incoming.accepted(node) or self._is_good(came[row])
            for row, node in enumerate(came.nodes)
        ]
        good = came.select(np.flatnonzero(known))
        self.exchange.observe(server_round, good.nodes)
        return super().aggregate_train(server_round, good)

    def _is_good(self, reply: Message) -> bool:
        """Whether a reply may be learned from; also holds where no guard stands before us."""
        try:
            self.check_reply(reply)
        except ValueError as error:
            _LOG.warning("node %d: %s", reply.metadata.src_node_id, error)
            return False
        return True


class InsightExchange(Insights, Local):
    """Sampling as in FedAvg; what travels is insights up and guidance down."""

    evaluation_rides = True

    @override
    def check_reply(self, reply: Message) -> None:
        if words.ARRAYS in reply.content:
            raise ValueError("weights must not travel in insight exchange")
        super().check_reply(reply)

    @override
    def doubtful_replies(self, part: Part, nodes: Sequence[int]) -> NDArray[np.bool_]:
        if words.ARRAYS in part.records:
            return np.full(len(nodes), True)
        return super().doubtful_replies(part, nodes)


def with_insights(strategy: type[StackedFedAvg]) -> type[StackedFedAvg]:
    """The same strategy, whose clients tell insights and are told guidance.

    Args:
        strategy: its class; the new one takes `exchange` besides.
    """
    rides = {"evaluation_rides": strategy.evaluation_rides}
    return type(f"{strategy.__name__}WithInsights", (Insights, strategy), rides)
