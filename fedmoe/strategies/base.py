"""What our strategies add to Flower's FedAvg.

Seeded sampling, a message of its own for each client, and averaging of stacked tensors.

Classes combine by cooperative inheritance: `class FedAdam(flower.FedAdam, StackedFedAvg)` runs
Flower's server optimiser on our sampling and averaging. All of them also run under Flower's
own `Strategy.start`.

Letters: C clients that replied.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedmoe.errors import RunError
from fedmoe.messages import words
from fedmoe.messages.arrays import gather, to_record
from fedmoe.messages.seams import unchecked_records

# Flower's defaults ask for two nodes; a federation of one is a fair control.
ONE_IS_ENOUGH = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


class StackedFedAvg(FedAvg):
    """FedAvg (arXiv 1602.05629) with seeded sampling and stacked averaging.

    Attributes:
        seed: of the sampling; round r of two runs with one seed asks the same clients.
        has_global_model: whether weights travel; evaluation then sends them along.
    """

    has_global_model = True

    def __init__(self, *, seed: int = 0, **options: Any) -> None:
        super().__init__(**{**ONE_IS_ENOUGH, **options})
        self.seed = seed

    def sample(self, server_round: int, grid: Grid) -> list[int]:
        """The nodes that train in a round: `fraction_train` of those connected, at least one.

        They are drawn from the grid's own order; our grids list nodes by client, so that the
        same clients are asked whatever ids Flower has given their nodes.

        Raises:
            RunError: no node is connected.
        """
        nodes = list(grid.get_node_ids())
        if not nodes:
            raise RunError("no client is connected")
        count = max(1, self.min_train_nodes, int(len(nodes) * self.fraction_train))
        if count >= len(nodes):
            return nodes
        generator = np.random.default_rng([self.seed, server_round])
        chosen = generator.choice(len(nodes), size=count, replace=False)
        return [nodes[index] for index in sorted(chosen)]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message per sampled client, each with records of its own."""
        if self.fraction_train == 0.0:
            return []
        config[words.SERVER_ROUND] = server_round
        return [
            Message(
                content=self.train_content(node, arrays, config),
                message_type=MessageType.TRAIN,
                dst_node_id=node,
            )
            for node in self.sample(server_round, grid)
        ]

    def train_content(self, node: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        """What one node is sent; override this to send each client something else."""
        del node
        return unchecked_records(
            {self.arrayrecord_key: arrays, self.configrecord_key: config.copy()}
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Every client evaluates: results are about all of them."""
        if self.fraction_evaluate == 0.0:
            return []
        config[words.SERVER_ROUND] = server_round
        records = {self.arrayrecord_key: arrays} if self.has_global_model else {}
        return [
            Message(
                content=unchecked_records({**records, self.configrecord_key: config.copy()}),
                message_type=MessageType.EVALUATE,
                dst_node_id=node,
            )
            for node in grid.get_node_ids()
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the weights by number of examples: w = sum_c n_c w_c / sum_c n_c."""
        del server_round
        contents = in_node_order(replies)
        if not contents:
            return None, None
        weight_C = example_weights(contents, self.weighted_by_key)
        record = to_record(average(contents, self.arrayrecord_key, weight_C))
        return record, mean_metrics(contents, weight_C, self.weighted_by_key)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the metrics by number of examples."""
        del server_round
        contents = in_node_order(replies)
        if not contents:
            return None
        weight_C = example_weights(contents, self.weighted_by_key)
        return mean_metrics(contents, weight_C, self.weighted_by_key)


def in_node_order(replies: Iterable[Message]) -> list[RecordDict]:
    """Contents of the replies without error, by node id: sums then repeat bit for bit."""
    good = [reply for reply in replies if not reply.has_error()]
    return [reply.content for reply in sorted(good, key=lambda one: one.metadata.src_node_id)]


def metrics_of(content: RecordDict) -> MetricRecord:
    """A reply's metrics."""
    return cast(MetricRecord, content[words.METRICS])


def example_weights(contents: Sequence[RecordDict], key: str = words.NUM_EXAMPLES) -> torch.Tensor:
    """Each reply's share of the examples, (C,); equal shares if nobody has any."""
    counts = torch.tensor(
        [float(cast(float, metrics_of(content)[key])) for content in contents], dtype=torch.float64
    )
    total = counts.sum()
    return counts / total if total > 0 else torch.full_like(counts, 1 / len(contents))


def average(
    contents: Sequence[RecordDict], key: str, weight_C: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Weighted sum of the replies' arrays, taken on the stacked tensors."""
    stacked = gather([cast(ArrayRecord, content[key]) for content in contents])
    return {
        name: torch.tensordot(weight_C.to(value.dtype), value, dims=1)
        if value.is_floating_point()
        else value[0]
        for name, value in stacked.items()
    }


def mean_metrics(
    contents: Sequence[RecordDict], weight_C: torch.Tensor, weight_key: str
) -> MetricRecord:
    """Weighted mean of every metric but the weights themselves."""
    records = [metrics_of(content) for content in contents]
    weights = weight_C.tolist()
    return MetricRecord(
        {
            name: sum(
                w * float(cast(float, record[name]))
                for w, record in zip(weights, records, strict=True)
            )
            for name in records[0]
            if name != weight_key
        }
    )
