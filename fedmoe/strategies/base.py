"""What our strategies add to Flower's FedAvg.

Seeded sampling, one broadcast for a round's messages, and merging of stacked tensors.

Classes combine by cooperative inheritance: `class FedAdam(flower.FedAdam, StackedFedAvg)` runs
Flower's server optimiser on our sampling and averaging. All of them also run under Flower's
own `Strategy.start`, on any grid.

Letters: C clients that replied.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedmoe.data.federation import Ints
from fedmoe.errors import RunError
from fedmoe.messages import words
from fedmoe.messages.arrays import lazy_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.parts import example_weights
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import RecordType
from fedmoe.models import Parameters

# Flower's defaults ask for two nodes; a federation of one is a fair control.
ONE_IS_ENOUGH = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
# Methods that want each client's weights, and not only their mean by number of examples.
_NEEDS_EACH = {"merge", "weights", "aggregate_train", "check_reply"}


class StackedFedAvg(FedAvg):
    """FedAvg (arXiv 1602.05629) with seeded sampling and stacked averaging.

    A strategy of one's own overrides what differs: `personal_records` (what each client is sent
    besides), `merge` (what the server makes of the clients' weights), or any of Flower's methods.

    Attributes:
        seed: of the sampling; round r of two runs with one seed asks the same clients.
        has_global_model: whether weights travel; evaluation then sends them along.
        mergeable: whether the mean of the clients' weights by number of examples is all that
            `merge` needs. Grids may then average where the clients are, so that traffic and
            memory do not grow with their number. A subclass that merges or weighs in its own
            way is not mergeable unless it says so; one that looks at each reply (`check_reply`)
            never gets a mean, since nobody can take a reply that it refuses out of one.
        evaluation_rides: whether a round may be evaluated in the same exchange as the next one is
            trained, see `fedmoe.riding`: nothing of `configure_train` follows from
            `aggregate_evaluate`, which is called after it; and training that has been configured
            may not take place, or be configured once more. Each class says so for itself; none
            inherits it.
    """

    has_global_model = True
    mergeable = True
    evaluation_rides = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "evaluation_rides" not in vars(cls):
            cls.evaluation_rides = False
        for base in cls.__mro__:  # who comes first has its say; mixins and Flower's count too
            own = vars(base)
            if "mergeable" in own:
                break
            if own.keys() & _NEEDS_EACH:
                cls.mergeable = False
                break

    def __init__(self, *, seed: int = 0, **options: Any) -> None:
        super().__init__(**{**ONE_IS_ENOUGH, **options})
        self.seed = seed
        self.load: Parameters = {}

    def sample(self, server_round: int, grid: Grid) -> Sequence[int]:
        """The nodes that train in a round: `fraction_train` of those connected, at least one.

        They are drawn from the grid's own order; our grids list nodes by client, so that the
        same clients are asked whatever ids Flower has given their nodes.

        Raises:
            RunError: no node is connected.
        """
        nodes = connected(grid)
        if not nodes:
            raise RunError("no client is connected")
        count = max(1, self.min_train_nodes, int(len(nodes) * self.fraction_train))
        return nodes if count >= len(nodes) else self.choose(server_round, nodes, count)

    def choose(self, server_round: int, nodes: Sequence[int], count: int) -> Sequence[int]:
        """Draw `count` of more nodes; they keep their order."""
        generator = np.random.default_rng([self.seed, server_round])
        chosen = np.sort(generator.choice(len(nodes), size=count, replace=False))
        return [nodes[index] for index in chosen.tolist()]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message per sampled client, made only if somebody looks."""
        if self.fraction_train == 0.0:
            return []
        config[words.SERVER_ROUND] = server_round
        nodes = self.sample(server_round, grid)
        return Broadcast(
            nodes,
            MessageType.TRAIN,
            {**self._records(arrays, config), **self._load_record(), **self.shared_records()},
            personal=self.personal_records(nodes),
            mergeable=self.mergeable
            and not hasattr(self, "check_reply")
            and (self.arrayrecord_key, self.weighted_by_key) == (words.ARRAYS, words.NUM_EXAMPLES),
        )

    def _load_record(self) -> Mapping[str, RecordType]:
        return {words.LOAD: lazy_record(self.load)} if self.load else {}

    def shared_records(self) -> Mapping[str, RecordType]:
        """What all nodes are sent to train with besides the weights and settings."""
        return {}

    def personal_records(self, nodes: Sequence[int]) -> list[Mapping[str, RecordType]] | None:
        """What each node is sent besides the weights and settings; `None` for nothing."""
        del nodes
        return None

    def known_clusters(self, nodes: Sequence[int]) -> Ints | None:
        """Which nodes' data follow one rule, (N,), as far as somebody has found out; else `None`.

        Clusters are counted from 0; -1 is for a node that is in none.
        """
        del nodes
        return None

    def personal_models(self, nodes: Sequence[int]) -> list[Mapping[str, RecordType]] | None:
        """What each node is sent to evaluate besides the weights and settings."""
        del nodes
        return None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Every client evaluates: results are about all of them."""
        if self.fraction_evaluate == 0.0:
            return []
        config[words.SERVER_ROUND] = server_round
        nodes, records = connected(grid), self._records(arrays, config)
        personal = self.personal_models(nodes)
        return Broadcast(nodes, MessageType.EVALUATE, records, personal=personal)

    def _records(self, arrays: ArrayRecord, config: ConfigRecord) -> dict[str, RecordType]:
        weights = {self.arrayrecord_key: arrays} if self.has_global_model else {}
        return {**weights, self.configrecord_key: config}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge the weights, and average the metrics by number of examples."""
        del server_round
        columns = Replies.of(replies)
        if not columns:
            return None, None
        merged = self.merge(columns) if self.has_global_model else None
        self.load = self._mean_load(columns, merged)
        record = None if merged is None else lazy_record(merged)
        return record, self.mean_metrics(columns)

    def merge(self, replies: Replies) -> Parameters:
        """The next global model from the clients' replies.

        Average by number of examples: w = sum_c n_c w_c / sum_c n_c.
        """
        return replies.mean(self.weights(replies), self.arrayrecord_key)

    def _mean_load(self, replies: Replies, merged: Parameters | None) -> Parameters:
        """How the federation used the experts of a mixture, by number of examples, if told.

        The shares that a client tells may be nonsense; each is cut to [0, 1], so that the worst
        that a client can do is to misrepresent its own samples. Where all tell what no client
        could read, nothing is told back.
        """
        if not replies.has_arrays(words.LOAD):
            return {}
        told = replies.arrays(words.LOAD)
        shapes = {value.shape[1:] for value in told.values() if value.is_floating_point()}
        experts = [v for name, v in (merged or {}).items() if name.startswith("experts.")]
        known = {value.shape[:1] for value in experts} or shapes
        if told.keys() != {"load", "importance"} or len(shapes) != 1 or shapes != known:
            return {}
        share_C = torch.from_numpy(example_weights(replies.numbers()[self.weighted_by_key]))
        return {
            name: torch.einsum("c,ce->e", share_C.to(value.dtype), value.cpu().clamp(0, 1))
            for name, value in told.items()
        }

    def weights(self, replies: Replies) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Each client's share of the examples, (C,)."""
        return example_weights(replies.numbers()[self.weighted_by_key])

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the metrics by number of examples."""
        del server_round
        columns = Replies.of(replies)
        return self.mean_metrics(columns) if columns else None

    def mean_metrics(self, replies: Replies) -> MetricRecord:
        """Weighted mean of every metric but the weights themselves."""
        numbers, weight_C = replies.numbers(), self.weights(replies)
        return MetricRecord(
            {
                name: float(weight_C @ values)
                for name, values in numbers.items()
                if name != self.weighted_by_key
            }
        )


def connected(grid: Grid) -> Sequence[int]:
    """A grid's nodes in its own order."""
    nodes = grid.get_node_ids()
    return nodes if isinstance(nodes, Sequence) else list(nodes)
