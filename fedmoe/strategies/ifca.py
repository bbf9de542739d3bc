"""IFCA's server: each of K models is the average of the clients that chose it.

Ghosh et al., "An efficient framework for clustered federated learning", arXiv 2006.04088,
algorithm 1; a model that nobody chose stays as it was. The algorithm needs a good start, for
which the authors restart it at random (section 6): here the first rounds try one start after
the other for as many rounds each, and training goes on from the one whose clients had the
lowest mean training loss in its last round. The rounds of all starts count.

Deviation: models are averaged by number of examples, and not each client alike.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe.messages import words
from fedmoe.messages.arrays import as_arrays, copied, lazy_record, tensors_of
from fedmoe.models import Parameters
from fedmoe.strategies.experts import ExpertAveraging


class Trials:
    """Several starts, which are tried one after the other.

    Attributes:
        starts: further models to begin with, (K, ...) by name, besides the first round's.
        rounds: how many each is tried.
        begun: the trial whose models were merged last; 0 for those of the first round.
        tried: by trial, the mean training loss of its last round, and its models.
    """

    def __init__(self, starts: Sequence[Parameters], rounds: int) -> None:
        self.starts, self.rounds = list(starts), rounds
        self.begun = 0
        self.tried: dict[int, tuple[float, Parameters]] = {}

    def of(self, server_round: int) -> int:
        """Whose turn a round is."""
        return (server_round - 1) // self.rounds

    def due(self, server_round: int) -> Parameters | None:
        """The models to train in place of the last ones: another start, or the best after all."""
        trial = self.of(server_round)
        # Void rounds merge nothing, so that what is due stays due.
        if self.begun < trial <= len(self.starts):
            return self.starts[trial - 1]
        return self._best() if trial > len(self.starts) and self.tried else None

    def note(self, server_round: int, loss: float, models: Parameters) -> Parameters | None:
        """What a round has made of a start; returns the best once all have been tried."""
        trial = self.of(server_round)
        if trial > len(self.starts):
            self.tried = {}
            return None
        self.begun = trial
        self.tried[trial] = loss, models
        if self.of(server_round + 1) <= len(self.starts):
            return None
        best, self.tried = self._best(), {}
        return best

    def _best(self) -> Parameters:
        return min(self.tried.values(), key=lambda one: one[0])[1]

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """For checkpoints: what came of the trials; the starts come from the configuration."""
        arrays = {
            f"{trial}/{name}": array
            for trial, (_, models) in self.tried.items()
            for name, array in as_arrays(models).items()
        }
        losses = [[trial, loss] for trial, (loss, _) in self.tried.items()]
        return arrays, {"begun": self.begun, "losses": losses}

    def restore(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Undo `state`."""
        self.begun = values["begun"]
        self.tried = {}
        for trial, loss in values["losses"]:
            own = {n.partition("/")[2]: a for n, a in arrays.items() if n.startswith(f"{trial}/")}
            self.tried[trial] = (loss, copied(own))


class Ifca(ExpertAveraging):
    """Clustered FedAvg.

    Attributes:
        trials: of the starts.
    """

    sends_back_all = False
    evaluation_rides = True

    def __init__(
        self, *, starts: Sequence[Parameters] = (), restart_rounds: int = 1, **options: Any
    ) -> None:
        super().__init__(**options)
        self.trials = Trials(starts, restart_rounds)

    @override
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin anew where another start is due, and go on from the best after the last."""
        due = self.trials.due(server_round)
        sent = arrays if due is None else lazy_record(due)
        return super().configure_train(server_round, sent, config, grid)

    @override
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, and choose among the starts once all have been tried."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None or not self.trials.starts:
            return arrays, metrics
        loss = metrics.get(words.LOSS) if metrics else None
        known = loss if isinstance(loss, float) else math.inf
        best = self.trials.note(server_round, known, tensors_of(arrays))
        return (arrays if best is None else lazy_record(best)), metrics
