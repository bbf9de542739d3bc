"""Nobody talks: each client trains its own model on its own data.

The baseline that every federated method has to beat. Clients get a round number and answer
with metrics; no weights travel in either direction, and each model stays in its client's state.
"""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from typing_extensions import override

from fedmoe.strategies.base import StackedFedAvg, example_weights, in_node_order, mean_metrics


class Local(StackedFedAvg):
    """FedAvg's sampling, and nothing else of it."""

    has_global_model = False

    @override
    def train_content(self, node: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        """The settings alone."""
        return RecordDict({self.configrecord_key: config.copy()})

    @override
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the metrics; there are no weights."""
        contents = in_node_order(replies)
        if not contents:
            return None, None
        return None, mean_metrics(contents, example_weights(contents), self.weighted_by_key)
