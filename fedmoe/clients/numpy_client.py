"""A client behind Flower's NumPy interface: a cohort of one.

The experiments of this project go through `answer`, which trains whole cohorts; this is the
same client for code that speaks `NumPyClient` (and the yardstick that cohorts are measured by).
"""

from typing import cast

import numpy as np
import torch
from flwr.app import RecordDict
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from fedmoe.clients.experiment import Experiment
from fedmoe.clients.local import evaluate_clients, train_clients
from fedmoe.clients.requests import EvaluateRequest, Settings, TrainRequest
from fedmoe.clients.states import ContextStates
from fedmoe.messages import words
from fedmoe.messages.arrays import Numbers, Stack
from fedmoe.models import Parameters

_MODELS = ("global", "personalised")


class FedMoEClient(NumPyClient):
    """One client's data and local model.

    Attributes:
        experiment: configuration, data and model.
        client: the client's partition.
        state: the client's private records.
    """

    def __init__(self, experiment: Experiment, client: int) -> None:
        self.experiment, self.client, self.state = experiment, client, RecordDict()
        self._alone = np.array([client])
        self._states = ContextStates({client: self.state})

    def get_parameters(self, config: dict[str, Scalar]) -> NDArrays:
        """The initial parameters that travel, in the model's order of names."""
        del config
        return [value.numpy().copy() for value in self.experiment.shared.values()]

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train from the given parameters on the client's training part.

        `config` may hold `server-round` and `proximal-mu`.

        Raises:
            ValueError: the client's algorithm replies with some of the experts alone, and a NumPy
                client has no way to say which.
        """
        request = TrainRequest(
            clients=self._alone,
            settings=Settings(
                round=int(config.get(words.SERVER_ROUND, 0)),
                proximal_mu=float(config.get(words.PROXIMAL_MU, 0.0)),
            ),
            params=self._params(parameters),
        )
        records = train_clients(self.experiment, request, self._states)
        trained, metrics = records.get(words.ARRAYS), cast(Numbers, records[words.METRICS])
        sent = trained.tensors if isinstance(trained, Stack) else {}
        arrays = [sent[name][0].cpu().numpy() for name in self.experiment.shared]
        if any(own.shape != np.shape(one) for own, one in zip(arrays, parameters, strict=True)):
            raise ValueError("only some of the experts would be returned, without saying which")
        loss = float(metrics[words.LOSS][0])
        return arrays, int(metrics[words.NUM_EXAMPLES][0]), {words.LOSS: loss}

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Score the given parameters on the client's validation and test parts.

        The loss is the global model's, or the personalised one's where there is no other.
        """
        del config
        request = EvaluateRequest(clients=self._alone, params=self._params(parameters))
        records = evaluate_clients(self.experiment, request, self._states)
        columns = cast(Numbers, records[words.METRICS])
        scores = {name: column[0].item() for name, column in columns.items()}
        count = scores.pop(words.NUM_EXAMPLES)
        names = (f"test-{which}-{loss}" for which in _MODELS for loss in ("loss", "mse"))
        loss = next(scores[name] for name in names if name in scores)
        return float(loss), count, dict(scores)

    def _params(self, parameters: NDArrays) -> Parameters:
        names = list(self.experiment.shared)
        if len(parameters) != len(names):
            raise ValueError(f"expected {len(names)} arrays ({names}), got {len(parameters)}")
        return {n: torch.tensor(p)[None] for n, p in zip(names, parameters, strict=True)}
