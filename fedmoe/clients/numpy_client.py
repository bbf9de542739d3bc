"""A client behind Flower's NumPy interface: a cohort of one.

The experiments of this project go through `answer`, which trains whole cohorts; this is the
same client for code that speaks `NumPyClient` (and the yardstick that cohorts are measured by).
"""

from flwr.app import ArrayRecord, RecordDict
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from fedmoe.clients.experiment import Experiment
from fedmoe.clients.local import evaluate_clients, train_clients
from fedmoe.clients.requests import EvaluateRequest, TrainRequest
from fedmoe.messages import words
from fedmoe.messages.arrays import from_record


class FedMoEClient(NumPyClient):
    """One client's data and local model.

    Attributes:
        experiment: configuration, data and model.
        client: the client's partition.
        state: the client's private records.
    """

    def __init__(self, experiment: Experiment, client: int) -> None:
        self.experiment, self.client, self.state = experiment, client, RecordDict()

    def get_parameters(self, config: dict[str, Scalar]) -> NDArrays:
        """The initial parameters, in the model's order of names."""
        del config
        return [value.numpy().copy() for value in self.experiment.initial.values()]

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train from the given parameters on the client's training part.

        `config` may hold `server-round` and `proximal-mu`.
        """
        request = TrainRequest(
            client=self.client,
            round=int(config.get(words.SERVER_ROUND, 0)),
            state=self.state,
            arrays=self._record(parameters),
            proximal_mu=float(config.get(words.PROXIMAL_MU, 0.0)),
        )
        update = train_clients(self.experiment, [request])[0]
        trained = from_record(update.arrays)
        arrays = [trained[name].numpy() for name in self.experiment.initial]
        return arrays, update.num_examples, {words.LOSS: update.final_loss}

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Score the given parameters on the client's validation and test parts."""
        del config
        request = EvaluateRequest(
            client=self.client, state=self.state, arrays=self._record(parameters)
        )
        scores = dict(evaluate_clients(self.experiment, [request])[0])
        count = int(scores.pop(words.NUM_EXAMPLES))
        loss = scores.get("test-global-loss", scores.get("test-global-mse", 0.0))
        return float(loss), count, dict(scores)

    def _record(self, parameters: NDArrays) -> ArrayRecord:
        names = list(self.experiment.initial)
        if len(parameters) != len(names):
            raise ValueError(f"expected {len(names)} arrays ({names}), got {len(parameters)}")
        record = ArrayRecord(list(parameters))
        return ArrayRecord(dict(zip(names, record.values(), strict=True)))
