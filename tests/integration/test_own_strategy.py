"""A user's strategy gives the same stacked, in shards, one by one, and as Flower's own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from federation_runs import own_parts
from flwr.app import Context, Message
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray

from fedmoe.clients import answer, load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.messages.arrays import to_record
from fedmoe.simulations import ContextGrid, InProcessGrid
from fedmoe.simulations.cohort_grid import CohortGrid

ROUNDS, BETA = 3, 0.8
WORDS = ["partition.num_clients=6", "model.hidden=[8]", "training.epochs=1"]


def one_by_one(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
    pairs = zip(messages, contexts, strict=True)
    return [reply for message, context in pairs for reply in answer([message], [context])]


def run(grid: CohortGrid, strategy: Any, config_json: str) -> dict[str, NDArray[Any]]:
    """As Flower's own loop runs it."""
    initial = to_record(load_experiment(config_json).initial)
    result = strategy.start(grid, initial, num_rounds=ROUNDS)
    return {name: array.numpy() for name, array in result.arrays.items()}


@pytest.mark.parametrize("way", ["stacked", "shards", "one by one"])
def test_the_example_is_flowers_server_momentum(way: str) -> None:
    """Flower's FedAvgM, whose momentum starts at the second round, is the oracle."""
    size = 2 if way == "shards" else 100
    text = to_json(load_config([*WORDS, f"runtime.shard_size={size}"]))
    grid: CohortGrid = InProcessGrid(load_experiment(text))
    if way == "one by one":
        grid = ContextGrid(text, 6, one_by_one)
    found = run(grid, own_parts().ServerMomentum(beta=BETA, seed=0), text)
    oracle = flower.FedAvgM(server_learning_rate=1.0, server_momentum=BETA)
    expected = run(InProcessGrid(load_experiment(text)), oracle, text)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5)
