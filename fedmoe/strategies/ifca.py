"""IFCA's server: each of K models is the average of the clients that chose it.

Ghosh et al., "An efficient framework for clustered federated learning", arXiv 2006.04088,
algorithm 1; a model that nobody chose stays as it was. The algorithm needs a good start, for
which the authors restart it at random (section 6): here the first rounds try one start after
the other for as many rounds each, and training goes on from the one whose clients had the
lowest mean training loss. The rounds of all starts count.

Deviation: models are averaged by number of examples, and not each client alike.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor
from typing_extensions import override

from fedmoe.messages import words
from fedmoe.messages.arrays import lazy_record, tensors_of
from fedmoe.models import Parameters
from fedmoe.strategies.experts import ExpertAveraging


class Ifca(ExpertAveraging):
    """Clustered FedAvg.

    Attributes:
        starts: further models to begin with, (K, ...) by name, besides the first round's.
        restart_rounds: how many rounds each start is tried.
        tried: what came of each start: its mean training loss, and its models.
    """

    sends_back_all = False

    def __init__(
        self, *, starts: Sequence[Parameters] = (), restart_rounds: int = 1, **options: Any
    ) -> None:
        super().__init__(**options)
        self.starts, self.restart_rounds = list(starts), restart_rounds
        self.tried: list[tuple[float, dict[str, Tensor]]] = []

    @override
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin anew where another start is due."""
        start, into = divmod(server_round - 1, self.restart_rounds)
        if into == 0 and 1 <= start <= len(self.starts):
            arrays = lazy_record(self.starts[start - 1])
        return super().configure_train(server_round, arrays, config, grid)

    @override
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, and choose among the starts once all have been tried."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        trials = len(self.starts) + 1
        if self.starts and server_round <= trials * self.restart_rounds:
            if server_round % self.restart_rounds == 0 and arrays is not None:
                loss = metrics[words.LOSS] if metrics and words.LOSS in metrics else 0.0
                assert isinstance(loss, float)
                self.tried.append((loss, tensors_of(arrays)))
            if server_round == trials * self.restart_rounds and self.tried:
                arrays = lazy_record(min(self.tried, key=lambda one: one[0])[1])
                self.tried = []
        return arrays, metrics
