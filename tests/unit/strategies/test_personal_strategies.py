"""Strategies that leave each client a model of its own, against plain loops over the clients."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from personal_oracle import (
    PlainFederation,
    Scores,
    run_ditto,
    run_fedavg_finetune,
    run_fedproto,
    run_fedrep,
)

from fedmoe.clients import answer, load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.messages.arrays import from_record, to_record
from fedmoe.models import Parameters
from fedmoe.models.heads import head_names
from fedmoe.rounds import RoundLoop, RoundRecord
from fedmoe.schema import ExperimentConfig
from fedmoe.simulations import ContextGrid, InProcessGrid
from fedmoe.standing import Standing
from fedmoe.strategies import FedProto, build_strategy

CLIENTS = 6
WORDS = [
    f"partition.num_clients={CLIENTS}", "partition.alpha=0.2", "rounds=3", "training.epochs=2",
    "model.hidden=[7]", "strategy.fraction_train=0.5", "training.batch_size=64", "seed=1",
]  # fmt: skip
STRATEGIES = {
    "fedavg_finetune": ["strategy=fedavg_finetune", "strategy.finetune_epochs=3"],
    "ditto": ["strategy=ditto", "strategy.proximal_lambda=0.7", "strategy.personal_epochs=3"],
    "fedrep": ["strategy=fedrep", "strategy.head_epochs=3"],
    "fedproto": ["strategy=fedproto", "strategy.prototype_lambda=3"],
}
TRAINING = {
    "momentum": ["training.weight_decay=0.01"],
    "kept-momentum": ["training.reset_optimizer=false"],
    "kept-moments": [
        "training=adam", "training.reset_optimizer=false", "training.learning_rate=0.01",
    ],
}  # fmt: skip


@dataclass
class Run:
    """What a run left."""

    records: list[RoundRecord]
    shared: Parameters
    strategy: Any
    grid: InProcessGrid | ContextGrid

    @property
    def sampled(self) -> list[list[int]]:
        return [record.clients["client"] for record in self.records]

    def private(self, client: int, key: str) -> Parameters | None:
        """What a client keeps under a key."""
        if isinstance(self.grid, ContextGrid):
            record = self.grid.contexts[client].state.array_records.get(key)
            return None if record is None else from_record(record)
        for name, clients, arrays in self.grid.states.everything():
            if name == key and client in clients:
                row = clients.tolist().index(client)
                return {n: torch.from_numpy(a[row]) for n, a in arrays.items()}
        return None


def run(config: ExperimentConfig, grid: InProcessGrid | ContextGrid | None = None) -> Run:
    experiment = load_experiment(to_json(config))
    grid = grid or InProcessGrid(experiment)
    strategy = build_strategy(config, experiment.data.task)
    records: list[RoundRecord] = []
    standing = Standing(to_record(experiment.shared))
    loop = RoundLoop(
        config=config,
        strategy=strategy,
        grid=grid,
        standing=standing,
        client_of=grid.client_id,
        on_round=records.append,
    )
    assert loop.run() == "completed"
    assert all(status == "ok" for record in records for status in record.clients["status"])
    shared = {name: torch.tensor(array.numpy()) for name, array in standing.arrays.items()}
    return Run(records, shared, strategy, grid)


def assert_close(mine: Parameters, theirs: Parameters) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=1e-5)


def assert_scores(found: Run, expected: Scores) -> None:
    last = found.records[-1].metrics["test"]
    for which in ("global", "personalised"):
        if which not in expected:
            assert last[which] is None
            continue
        loss, accuracy = expected[which]
        assert last[which]["loss"]["mean"] == pytest.approx(loss, abs=1e-5)
        assert last[which]["accuracy"]["mean"] == pytest.approx(accuracy, abs=1e-6)


def assert_private(found: Run, world: PlainFederation, keys: dict[str, str]) -> None:
    """Those who trained keep what they should, and the others nothing."""
    trained = {client for clients in found.sampled for client in clients}
    assert 0 < len(trained) < CLIENTS, "the seed must leave out a client for this to mean anything"
    for theirs, mine in keys.items():
        for client in range(CLIENTS):
            own = found.private(client, mine)
            assert (own is not None) == (client in trained) == ((client, theirs) in world.private)
            if own is not None:
                assert_close(own, world.private[client, theirs])


def config_of(*words: str) -> ExperimentConfig:
    return load_config([*WORDS, *words])


# Adam takes a rounding error for a direction where the gradient is 0, as at an idle expert.
CASES = [
    *((training, []) for training in TRAINING),
    (
        "momentum",
        ["model=moe", "model.hidden=[3]", "model.losses.balance=0", "model.losses.importance=0"],
    ),
]
every_case = pytest.mark.parametrize(
    ("training", "model"), CASES, ids=[f"{t}-{'moe' if m else 'mlp'}" for t, m in CASES]
)


def run_and_world(
    strategy: str, training: str, model: Sequence[str], *more: str
) -> tuple[Run, PlainFederation]:
    config = config_of(*STRATEGIES[strategy], *TRAINING[training], *model, *more)
    return run(config), PlainFederation(load_experiment(to_json(config)))


@every_case
def test_fedavg_finetune(training: str, model: Sequence[str]) -> None:
    found, world = run_and_world("fedavg_finetune", training, model)
    shared, scores = run_fedavg_finetune(world, found.sampled, 2, finetune_epochs=3)
    assert_close(found.shared, shared)
    assert_scores(found, scores)
    assert found.private(found.sampled[0][0], "model") is None


@every_case
def test_ditto(training: str, model: Sequence[str]) -> None:
    found, world = run_and_world("ditto", training, model)
    shared, scores = run_ditto(world, found.sampled, 2, personal_epochs=3, strength=0.7)
    assert_close(found.shared, shared)
    assert_scores(found, scores)
    assert_private(found, world, {"personal": "personal-model"})


@every_case
def test_fedrep(training: str, model: Sequence[str]) -> None:
    found, world = run_and_world("fedrep", training, model)
    head = head_names(world.experiment.model)
    assert 0 < len(head) < len(world.initial)
    body, scores = run_fedrep(world, found.sampled, 2, 3, head)
    assert_close(found.shared, body)
    assert_scores(found, scores)
    assert_private(found, world, {"head": "model"})


@every_case
def test_fedproto(training: str, model: Sequence[str]) -> None:
    found, world = run_and_world("fedproto", training, model)
    prototypes, scores = run_fedproto(world, found.sampled, 2, strength=3.0)
    assert found.shared == {}
    assert isinstance(found.strategy, FedProto)
    assert np.flatnonzero(found.strategy.known_O).tolist() == sorted(prototypes)
    for label, prototype in prototypes.items():
        torch.testing.assert_close(found.strategy.mean_OF[label], prototype, rtol=0, atol=1e-5)
    assert_scores(found, scores)
    assert_private(found, world, {"model": "model"})


def test_a_class_that_nobody_has_in_a_round_keeps_its_prototype() -> None:
    """And one that nobody has had yet pulls nobody: as the plain loop has it."""
    more = ["strategy.fraction_train=0.2", "partition.alpha=0.05", "rounds=4"]
    found, world = run_and_world("fedproto", "momentum", [], *more)
    has = [{c: set(world.data(c, "train")[1].tolist()) for c in cs} for cs in found.sampled]
    by_round = [set().union(*own.values()) for own in has]
    assert any(now - next for now, next in pairwise(by_round))
    prototypes, scores = run_fedproto(world, found.sampled, 2, strength=3.0)
    for label, prototype in prototypes.items():
        torch.testing.assert_close(found.strategy.mean_OF[label], prototype, rtol=0, atol=1e-5)
    assert_scores(found, scores)


# ------------------------------------------------------------------ one by one, and in cohorts


def one_by_one(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
    pairs = zip(messages, contexts, strict=True)
    return [answer([message], [context])[0] for message, context in pairs]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_by_one_and_in_cohorts_are_the_same(strategy: str) -> None:
    words = [*STRATEGIES[strategy], "training.reset_optimizer=false"]
    text = to_json(config_of(*words))
    together = run(config_of(*words))
    alone = run(config_of(*words), ContextGrid(text, CLIENTS, one_by_one))
    in_shards = run(config_of(*words, "runtime.shard_size=2"))
    for other in (alone, in_shards):
        assert_close(other.shared, together.shared)
        for mine, theirs in zip(other.records, together.records, strict=True):
            assert mine.metrics["bytes"] == theirs.metrics["bytes"]
            for part in ("validation", "test"):
                for which, scores in theirs.metrics[part].items():
                    for name, stats in (scores or {}).items():
                        assert mine.metrics[part][which][name] == pytest.approx(stats, abs=1e-5)
        for key in private_keys(together):
            for client in range(CLIENTS):
                own, same = together.private(client, key), other.private(client, key)
                assert (own is None) == (same is None)
                if own is not None and same is not None:
                    assert_close(same, own)


def private_keys(found: Run) -> list[str]:
    assert isinstance(found.grid, InProcessGrid)
    return [key for key, _, _ in found.grid.states.everything()]


@pytest.mark.parametrize(
    ("strategy", "keys"),
    [
        ("fedavg_finetune", {"optimizer"}),
        ("ditto", {"optimizer", "personal-model", "personal-optimizer"}),
        ("fedrep", {"model", "optimizer", "head-optimizer"}),
        ("fedproto", {"model", "optimizer"}),
    ],
)
def test_what_is_kept_has_keys_of_its_own(strategy: str, keys: set[str]) -> None:
    words = STRATEGIES[strategy]
    assert set(private_keys(run(config_of(*words, "training.reset_optimizer=false")))) == keys
    fresh = {key for key in keys if "optimizer" not in key}
    assert set(private_keys(run(config_of(*words)))) == fresh
