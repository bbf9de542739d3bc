"""Client after client: python -m benchmarks.sides.loop (fedmoe | textbook) WORK.

`fedmoe` calls `Client.fit`, a cohort of one; `textbook` a client as a tutorial has it.
Both average the weights with NumPy, weighted by samples.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar
from torch.nn import functional

from benchmarks.child import Parent, play
from benchmarks.plain import Work


class TextbookClient(NumPyClient):
    """What a tutorial would write: load the weights, one epoch of SGD, return the weights."""

    def __init__(self, work: Work, client: int) -> None:
        self.work = work
        self.x, self.y = work.client(client)
        self.model = work.module()

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """One local epoch; `config` is not read."""
        del config
        with torch.no_grad():
            for parameter, value in zip(self.model.parameters(), parameters, strict=True):
                parameter.copy_(torch.from_numpy(value))
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.work.learning_rate)
        for batch in torch.split(torch.randperm(len(self.y)), self.work.batch_size):
            optimizer.zero_grad()
            loss = functional.cross_entropy(self.model(self.x[batch]), self.y[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        # Copies, since a module that is trained in place keeps its memory.
        arrays = [p.detach().numpy().copy() for p in self.model.parameters()]
        return arrays, len(self.y), {"loss": float(loss.detach())}


class Server:
    """Samples clients, lets each `fit`, and averages.

    Attributes:
        weights: the global model, in the order of the clients' parameters.
    """

    def __init__(self, clients: Sequence[NumPyClient], weights: NDArrays, sampled: int) -> None:
        self.clients, self.weights, self.sampled = clients, weights, sampled
        self.random, self.round = np.random.default_rng(0), 0

    def one_round(self) -> None:
        """One round of federated averaging."""
        self.round += 1
        chosen = self.random.choice(len(self.clients), self.sampled, replace=False)
        results = [
            self.clients[client].fit(self.weights, {"server-round": self.round})
            for client in np.sort(chosen)
        ]
        share = np.array([count for _, count, _ in results], dtype=np.float32)
        share /= share.sum()
        columns = zip(*(arrays for arrays, _, _ in results), strict=True)
        self.weights = [np.tensordot(share, np.stack(column), axes=1) for column in columns]


def fedmoe_clients(work: Work) -> tuple[list[NumPyClient], list[str]]:
    """Our clients, and the names of their parameters in order."""
    from fedmoe.clients import Client, load_experiment
    from fedmoe.config import load_config, to_json

    experiment = load_experiment(to_json(load_config(work.words)))
    return [Client(k, experiment) for k in range(len(work.rows))], list(experiment.initial)


def main() -> None:
    """Play rounds."""
    torch.set_num_threads(1)
    parent, work = Parent(), Work(Path(sys.argv[2]))
    if sys.argv[1] == "fedmoe":
        clients, names = fedmoe_clients(work)
        server = Server(clients, [work.initial[name].numpy() for name in names], work.sampled)
    else:
        textbook = [TextbookClient(work, client) for client in range(len(work.rows))]
        initial = [value.detach().numpy() for value in textbook[0].model.parameters()]
        server = Server(textbook, [value.copy() for value in initial], work.sampled)

    def loss() -> float:
        tensors = [torch.from_numpy(value) for value in server.weights]
        if sys.argv[1] == "fedmoe":
            return work.loss(work.module(dict(zip(names, tensors, strict=True))))
        module = work.module()
        torch.nn.utils.vector_to_parameters(
            torch.cat([value.flatten() for value in tensors]), module.parameters()
        )
        return work.loss(module)

    play(parent, server.one_round, loss)


if __name__ == "__main__":
    main()
