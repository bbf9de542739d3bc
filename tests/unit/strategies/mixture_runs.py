"""Small real runs of the strategies whose clients mix experts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message
from torch import Tensor, nn

from fedmoe import data, models
from fedmoe.clients import Experiment, answer, load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.messages.arrays import from_record, to_record
from fedmoe.messages.replies import Replies
from fedmoe.models import Parameters
from fedmoe.rounds import RoundLoop, RoundRecord
from fedmoe.simulations import ContextGrid, InProcessGrid
from fedmoe.standing import Standing
from fedmoe.strategies import build_strategy

FEATURES, OUTPUTS, RULES = 4, 3, 3
SIZES = (30, 5, 14, 9, 22, 6)
WORDS = [
    "data=custom", "data.factory=mixture-test-data", "partition=natural", "partition.min_samples=1",
    "model=linear",
    "training.batch_size=4", "training.epochs=2", "training.learning_rate=0.3",
    "training.momentum=0.5", "training.weight_decay=0.01", "seed=4", "rounds=2",
]  # fmt: skip
STRATEGIES = {
    "fedem": ["strategy=fedem"],
    "ifca": ["strategy=ifca", "strategy.restarts=1", "strategy.num_clusters=3"],
    "local_global": ["strategy=local_global"],
}


@data.register("mixture-test-data")
def mixture_data(*, seed: int, kind: str = "classification", sizes: str = "") -> data.Dataset:
    """Clients of unlike sizes; client k follows mostly rule k modulo 3."""
    rng = np.random.default_rng(seed)
    counts = [int(size) for size in sizes.split("-")] if sizes else list(SIZES)
    client_N = np.repeat(np.arange(len(counts)), counts)
    rules = rng.standard_normal((RULES, FEATURES, OUTPUTS))
    x_ND = rng.standard_normal((len(client_N), FEATURES)).astype(np.float32)
    rule_N = np.where(rng.random(len(client_N)) < 0.8, client_N % RULES, rng.integers(RULES))
    y_NO = np.einsum("nd,ndo->no", x_ND, rules[rule_N])
    y_NO += 0.1 * rng.standard_normal(y_NO.shape)
    classes = kind == "classification"
    return data.Dataset(
        name="mine",
        origin="synthetic",
        task=data.Task(
            kind="classification" if classes else "regression",
            num_features=FEATURES,
            num_outputs=OUTPUTS,
            class_names=("a", "b", "c") if classes else (),
        ),
        x_ND=x_ND,
        y_N=y_NO.argmax(axis=1) if classes else y_NO.astype(np.float32),
        client_N=client_N,
    )


@models.register("mixture-test-tanh")
def tanh_model(task: data.Task, *, dropout: float = 0.0) -> nn.Module:
    """A module of a user's own, which only autograd can differentiate."""
    last = nn.Linear(5, task.num_outputs)
    if dropout:
        return nn.Sequential(nn.Linear(task.num_features, 5), nn.Dropout(dropout), last)
    return nn.Sequential(nn.Linear(task.num_features, 5), nn.Tanh(), last)


MODELS = {
    "linear": ["model=linear"],
    "mlp": ["model=mlp", "model.hidden=[5,3]"],
    "own": ["model=custom", "model.factory=mixture-test-tanh"],
}


@dataclass
class Run:
    """What a run left.

    Attributes:
        arrays: the global model after each round.
    """

    experiment: Experiment
    strategy: Any
    grid: InProcessGrid | ContextGrid
    standing: Standing
    records: list[RoundRecord]
    arrays: list[Parameters]

    @property
    def sampled(self) -> list[list[int]]:
        return [record.clients["client"] for record in self.records]

    @property
    def reasons(self) -> list[list[str | None]]:
        return [record.clients["reason"] for record in self.records]

    def private(self, client: int, key: str = "model") -> Parameters | None:
        """What a client keeps under a key."""
        if isinstance(self.grid, ContextGrid):
            record = self.grid.contexts[client].state.array_records.get(key)
            return None if record is None else from_record(record)
        for name, clients, arrays in self.grid.states.everything():
            if name == key and client in clients:
                row = clients.tolist().index(client)
                return {n: torch.from_numpy(a[row]) for n, a in arrays.items()}
        return None

    def scores(self) -> dict[str, np.ndarray[Any, Any]]:
        """Every client's scores of the model as it is now, by name."""
        last = len(self.records)
        sent = self.strategy.configure_evaluate(
            last, self.standing.arrays, ConfigRecord(), self.grid
        )
        return Replies.of(self.grid.send_and_receive(sent)).numbers()


def experiment_of(words: Sequence[str]) -> Experiment:
    return load_experiment(to_json(load_config([*WORDS, *words])))


def run(
    words: Sequence[str],
    *,
    start: Mapping[str, Tensor] | None = None,
    alone: bool = False,
    grid: InProcessGrid | ContextGrid | None = None,
) -> Run:
    """Run to the end.

    Args:
        words: of the configuration.
        start: the global model to begin with; the experiment's own if `None`.
        alone: whether each client is answered by itself, with a context of its own.
        grid: in place of a new one.
    """
    experiment = experiment_of(words)
    config = experiment.config
    grid = grid or InProcessGrid(experiment)
    if alone:
        grid = ContextGrid(to_json(config), experiment.data.num_clients, one_by_one)
    strategy = build_strategy(config, experiment.data.task)
    standing = Standing(to_record(experiment.shared if start is None else start))
    records: list[RoundRecord] = []
    arrays: list[Parameters] = []

    def on_round(record: RoundRecord) -> None:
        records.append(record)
        arrays.append({n: torch.tensor(a.numpy()) for n, a in standing.arrays.items()})

    loop = RoundLoop(
        config=config,
        strategy=strategy,
        grid=grid,
        standing=standing,
        client_of=grid.client_id,
        on_round=on_round,
    )
    assert loop.run() == "completed"
    return Run(experiment, strategy, grid, standing, records, arrays)


def one_by_one(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
    pairs = zip(messages, contexts, strict=True)
    return [answer([message], [context])[0] for message, context in pairs]


def assert_close(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name].double(), value.double(), rtol=0, atol=1e-5)
