"""Clients as objects: one behind Flower's NumPy interface, and all those of a federation.

Rounds go through `Clients.answer`, which trains whole cohorts; a `Client` is one of them on the
same data, model and private arrays: a cohort of one, for notebooks and for code that speaks
`NumPyClient` (and the yardstick that cohorts are measured by).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol, Self, cast

import numpy as np
import torch
from flwr.app import Message
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar
from torch import nn

from fedmoe.clients.answering import answer_cohort
from fedmoe.clients.experiment import Experiment
from fedmoe.clients.local import evaluate_clients, train_clients
from fedmoe.clients.models import own_model
from fedmoe.clients.requests import EvaluateRequest, Settings, TrainRequest
from fedmoe.clients.states import StackedStates, States
from fedmoe.data import Floats, Ints, Part
from fedmoe.errors import ConfigError, RunError
from fedmoe.messages import words
from fedmoe.messages.arrays import Numbers, Stack
from fedmoe.messages.replies import Replies
from fedmoe.models import Parameters

_MODELS = ("global", "personalised")


class Membership(Protocol):
    """What a client belongs to: a server, or `Clients` of whom nobody asks anything."""

    @property
    def experiment(self) -> Experiment:
        """Configuration, data and model."""
        ...

    @property
    def states(self) -> States:
        """Where the clients keep what is private to them."""
        ...

    def sent_to(self, client: int) -> EvaluateRequest:
        """What a client would now be sent to evaluate."""
        ...


@dataclass
class Clients:
    """The clients of one experiment: those that a grid delivers to, a worker's or all.

    Attributes:
        experiment: what they have in common.
        states: where they keep what is private to them.
    """

    experiment: Experiment
    states: States

    def answer(self, messages: Sequence[Message], ids: Ints) -> Replies:
        """Answer messages to the clients (C,), one each; see `answer_cohort`."""
        return answer_cohort(self.experiment, messages, ids, self.states)

    def sent_to(self, client: int) -> EvaluateRequest:
        """Nothing: without a server, a client has its own model alone."""
        return EvaluateRequest(clients=np.array([client]))


class Client(NumPyClient):
    """One client's data, its model, and what it keeps to itself.

    It can be made before there is a federation, and used once it belongs to one: that of the
    experiment given, or that of a server, see `fedmoe.Server`.

    Attributes:
        client_id: the client's place in the federation, from 0.

    Raises:
        ConfigError: the id cannot be one.
    """

    def __init__(self, client_id: int, experiment: Experiment | None = None) -> None:
        if not (isinstance(client_id, Integral) and client_id >= 0):
            raise ConfigError(f"client_id={client_id}: must be a whole number of at least 0")
        self.client_id: int = int(client_id)
        self._home: Membership | None = None
        if experiment is not None:
            self.join(Clients(experiment, StackedStates()))

    def join(self, home: Membership) -> Self:
        """Become one of the clients of a federation; whatever it belonged to before is left."""
        self._home = home
        return self

    @property
    def home(self) -> Membership:
        """What the client belongs to.

        Raises:
            RunError: nothing yet.
            ConfigError: its federation has no client of this id.
        """
        if self._home is None:
            raise RunError(
                f"client {self.client_id} belongs to no federation yet; let a server take it in, "
                "Server(clients=[...]), or make it with Client(client_id=..., experiment=...)"
            )
        data = self._home.experiment.data
        if self.client_id >= data.num_clients:
            raise ConfigError(
                f"client_id={self.client_id}: {data.name} is divided among clients 0 to "
                f"{data.num_clients - 1}"
            )
        return self._home

    @property
    def experiment(self) -> Experiment:
        """Configuration, data and model; raises as `home` does."""
        return self.home.experiment

    def data(self, part: Part = "train") -> tuple[Floats, Floats | Ints]:
        """The client's samples of one part: features (n, D), and classes (n,) or targets (n, O)."""
        return self.experiment.data.client(self.client_id, part)

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
        records = train_clients(self.experiment, request, self.home.states)
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
        records = evaluate_clients(self.experiment, request, self.home.states)
        columns = cast(Numbers, records[words.METRICS])
        scores = {name: column[0].item() for name, column in columns.items()}
        count = scores.pop(words.NUM_EXAMPLES)
        names = (f"test-{which}-{loss}" for which in _MODELS for loss in ("loss", "mse"))
        loss = next(scores[name] for name in names if name in scores)
        return float(loss), count, dict(scores)

    def model(self, parameters: NDArrays | None = None) -> nn.Module:
        """The client's model as its own scores are about: a copy, on the CPU, to predict with.

        Args:
            parameters: those that travel, as `fit` takes and returns them; by default what the
                server would send now. What is private to the client is its own.
        """
        request = self.home.sent_to(self.client_id)
        if parameters is not None:
            request = EvaluateRequest(clients=self._alone, params=self._params(parameters))
        return own_model(self.experiment, request, self.home.states)

    @property
    def _alone(self) -> Ints:
        return np.array([self.client_id])

    def _params(self, parameters: NDArrays) -> Parameters:
        names = list(self.experiment.shared)
        if len(parameters) != len(names):
            raise ValueError(f"expected {len(names)} arrays ({names}), got {len(parameters)}")
        return {n: torch.tensor(p)[None] for n, p in zip(names, parameters, strict=True)}
