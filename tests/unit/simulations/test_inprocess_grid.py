"""Cohorts of our own clients behind the in-process grid."""

from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message

from fedmoe.clients import Experiment, load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.data import pooled
from fedmoe.messages import words
from fedmoe.messages.arrays import from_record, to_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import set_message_id, wire_bytes
from fedmoe.rounds import RoundLoop
from fedmoe.simulations import InProcessGrid
from fedmoe.standing import Standing
from fedmoe.strategies import FedAvg, FedProx, Local, StackedFedAvg, build_strategy

CLIENTS = 7
WORDS = [
    "data=synthetic_linear", f"data.num_clients={CLIENTS}", "partition=natural", "model=linear",
]  # fmt: skip

DIGITS = ["data=digits", "partition=iid", "partition.num_clients=5"]


def experiment_of(*more: str) -> Experiment:
    return load_experiment(to_json(load_config([*WORDS, *more])))


def broadcast(grid: InProcessGrid, strategy: StackedFedAvg, round: int = 1) -> Broadcast:
    arrays = to_record(grid.experiment.initial)
    sent = strategy.configure_train(round, arrays, ConfigRecord(), grid)
    assert isinstance(sent, Broadcast)
    return sent


def send(grid: InProcessGrid, strategy: StackedFedAvg, round: int = 1) -> Replies:
    replies = grid.send_and_receive(broadcast(grid, strategy, round))
    assert isinstance(replies, Replies)
    return replies


def weights(record: ArrayRecord | None) -> dict[str, torch.Tensor]:
    assert record is not None
    return from_record(record)


def test_a_broadcast_and_the_messages_it_stands_for_give_the_same_replies() -> None:
    grid = InProcessGrid(experiment_of())
    columns = send(grid, FedAvg(seed=0))
    one_by_one = list(grid.send_and_receive(list(broadcast(grid, FedAvg(seed=0)))))
    for mine, theirs in zip(columns, one_by_one, strict=True):
        assert mine.content == theirs.content
        assert mine.metadata.src_node_id == theirs.metadata.src_node_id
        assert mine.metadata.message_type == theirs.metadata.message_type == "train"


@pytest.mark.parametrize("strategy", [FedAvg(seed=0), FedProx(seed=0, proximal_mu=0.5)])
@pytest.mark.parametrize("size", [1, 3, 6, 7])
def test_shards_merge_to_the_same_weights(strategy: StackedFedAvg, size: int) -> None:
    whole = send(InProcessGrid(experiment_of()), strategy)
    shards = send(InProcessGrid(experiment_of(f"runtime.shard_size={size}")), strategy)
    assert len(shards.parts) == -(-CLIENTS // size)
    assert all(bool(part.means) == (size < CLIENTS) for part in shards.parts)
    expected, metrics = strategy.aggregate_train(1, whole)
    received, merged_metrics = strategy.aggregate_train(1, shards)
    for name, tensor in weights(expected).items():
        torch.testing.assert_close(weights(received)[name], tensor, rtol=1e-5, atol=1e-6)
    assert metrics == pytest.approx(merged_metrics)


def test_who_needs_each_clients_weights_gets_them_from_shards_too() -> None:
    class Median(StackedFedAvg):
        def merge(self, replies: Replies) -> dict[str, torch.Tensor]:
            return {name: t.median(dim=0).values for name, t in replies.arrays().items()}

    assert FedAvg.mergeable and not Median.mergeable
    whole = send(InProcessGrid(experiment_of()), Median(seed=0)).arrays()
    shards = send(InProcessGrid(experiment_of("runtime.shard_size=2")), Median(seed=0)).arrays()
    assert all(torch.allclose(whole[name], shards[name], atol=1e-6) for name in whole)


def test_arrays_of_which_the_mean_alone_came_are_not_to_be_had() -> None:
    replies = send(InProcessGrid(experiment_of("runtime.shard_size=3")), FedAvg(seed=0))
    with pytest.raises(ValueError, match="only the mean of the clients' arrays has come"):
        replies.arrays()


def test_a_bad_client_never_gets_into_a_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard sees each reply of a shard before it is merged."""
    experiment = experiment_of("runtime.shard_size=3")
    rows = pooled(experiment.data).parts["train"].of(4)
    before = experiment.pool.x_ND[rows].clone()
    experiment.pool.x_ND[rows] = torch.nan
    try:
        replies = send(InProcessGrid(experiment), FedAvg(seed=0))
        arrays, _ = FedAvg(seed=0).aggregate_train(1, replies)
    finally:
        experiment.pool.x_ND[rows] = before
    assert [row for row, reply in enumerate(replies) if reply.has_error()] == [4]
    assert "not finite" in (replies[4].error.reason or "")
    healthy = send(InProcessGrid(experiment_of()), FedAvg(seed=0))
    others = healthy.select(np.array([0, 1, 2, 3, 5, 6]))
    expected, _ = FedAvg(seed=0).aggregate_train(1, others)
    for name, tensor in weights(expected).items():
        torch.testing.assert_close(weights(arrays)[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "keep", ["training.reset_optimizer=true", "training.reset_optimizer=false"]
)
def test_our_own_clients_read_their_messages_only(keep: str) -> None:
    """They get the server's records, not copies."""
    grid = InProcessGrid(experiment_of("strategy=fedprox", keep))
    arrays = to_record(grid.experiment.initial)
    strategy = FedProx(seed=0, proximal_mu=0.5)
    messages = [
        *strategy.configure_train(1, arrays, ConfigRecord(), grid),
        *strategy.configure_evaluate(1, arrays, ConfigRecord(), grid),
    ]
    objects = dict(arrays.items())
    before = [wire_bytes(message) for message in messages]
    for kind in ("train", "evaluate"):
        sent = [message for message in messages if message.metadata.message_type == kind]
        replies = list(grid.send_and_receive(sent))
        assert not any(reply.has_error() for reply in replies)
        for message in sent:
            set_message_id(message, "")  # the one thing that sending adds
    assert [wire_bytes(message) for message in messages] == before
    assert all(arrays[name] is array for name, array in objects.items())
    assert bool(grid.state()) == (keep == "training.reset_optimizer=false")


def test_no_message_is_made_that_nobody_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    ordinary = Message.__init__

    def count(self: Message, *args: object, **keywords: object) -> None:
        made.append(self)
        ordinary(self, *args, **keywords)  # type: ignore[call-overload]

    monkeypatch.setattr(Message, "__init__", count)
    grid, strategy = InProcessGrid(experiment_of()), FedAvg(seed=0)
    replies = send(grid, strategy)
    strategy.aggregate_train(1, replies)
    assert not made
    assert replies[3].metadata.src_node_id == 5
    assert len(made) == 2  # the reply, and what it replies to


def test_models_stay_with_their_clients_over_checkpoints() -> None:
    """Rounds in which not everybody takes part, with one restored in between."""
    experiment = experiment_of("training.reset_optimizer=false", "training.momentum=0.9")
    strategy = Local(seed=0, fraction_train=0.5)
    straight, resumed = InProcessGrid(experiment), InProcessGrid(experiment)
    for round in range(1, 7):
        send(straight, strategy, round)
        send(resumed, strategy, round)
        again = InProcessGrid(experiment)
        again.restore(resumed.state())
        resumed = again
    mine, theirs = straight.state(), resumed.state()
    assert list(mine) == list(theirs)
    assert {path.split("/")[0] for path in mine} == {"model", "model#clients", "optimizer",
                                                     "optimizer#clients"}  # fmt: skip
    for path, array in mine.items():
        np.testing.assert_array_equal(theirs[path], array)
    assert 5 <= len(mine["model/weight"]) == len(set(mine["model#clients"].tolist())) <= CLIENTS
    assert len({row.tobytes() for row in mine["model/weight"]}) == len(mine["model#clients"])


def test_a_client_is_scored_with_its_own_model_or_the_initial_one() -> None:
    grid, strategy = InProcessGrid(experiment_of()), Local(seed=0, fraction_train=0.3)
    asked = [node - 2 for node in send(grid, strategy).nodes]
    sent = strategy.configure_evaluate(1, ArrayRecord(), ConfigRecord(), grid)
    own = cast(Replies, grid.send_and_receive(sent)).numbers()["test-personalised-mse"]
    fresh = InProcessGrid(experiment_of())
    initial = cast(Replies, fresh.send_and_receive(sent)).numbers()["test-personalised-mse"]
    assert [client for client in range(CLIENTS) if own[client] != initial[client]] == asked


def test_an_unknown_node_and_a_broadcast() -> None:
    grid = InProcessGrid(experiment_of())
    records = {words.ARRAYS: to_record(grid.experiment.initial)}
    replies = list(grid.send_and_receive(Broadcast([2, 99, 3], "train", records)))
    assert sorted((r.metadata.src_node_id, r.has_error()) for r in replies) == [
        (2, False), (3, False), (99, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["strategy=fedavg", "runtime.shard_size=3"],
        ["strategy=fedprox", "model=moe", *DIGITS],
        ["strategy=fedadam"],
        ["strategy=local", "training.reset_optimizer=false"],
        ["strategy=insight"],
        ["strategy=insight", *DIGITS],
        ["strategy=fedavg", "meta_learner=prototypes", *DIGITS],
        ["strategy=insight", "meta_learner=distillation", "insight.every=1", *DIGITS],
        ["strategy=fedavg", "meta_learner=expert_bias", "model=moe", "model/router=loss_free"],
        ["strategy=fedem", *DIGITS],
        ["strategy=ifca", "strategy.restart_rounds=1", "training.reset_optimizer=false"],
        ["strategy=local_global"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_every_tensor_is_made_where_the_clients_train(words: list[str]) -> None:
    """A GPU's stand-in: whatever does not say where it is made ends up on `meta`, and fails."""
    config = load_config([*([] if DIGITS[0] in words else WORDS), *words, "rounds=2"])
    experiment = load_experiment(to_json(config))
    grid = InProcessGrid(experiment)
    failures = []
    loop = RoundLoop(
        config=config,
        strategy=build_strategy(config, experiment.data.task),
        grid=grid,
        standing=Standing(to_record(experiment.shared)),
        client_of=grid.client_id,
        on_round=lambda record: failures.append(record.clients["reason"]),
    )
    with torch.device("meta"):
        assert loop.run() == "completed"
    assert {reason for round in failures for reason in round} == {None}


@pytest.mark.parametrize("broken_first", [True, False])
def test_a_client_that_diverges_goes_on_from_where_it_was(broken_first: bool) -> None:
    """Its samples are spoilt for one round; afterwards it is as if it had not been asked."""
    words = ["training.reset_optimizer=false", "training.momentum=0.9"]
    experiment = experiment_of(*words)
    data = pooled(experiment.data)
    x_ND = data.x_ND.copy()
    x_ND[data.parts["train"].of(4)] = np.nan
    spoilt = InProcessGrid(replace(experiment, data=replace(data, x_ND=x_ND)))
    grid, never = InProcessGrid(experiment), InProcessGrid(experiment)
    rounds = [1, 2, 3]
    bad = rounds[0] if broken_first else rounds[1]
    for round in rounds:
        if round == bad:
            spoilt.states = grid.states
            replies = send(spoilt, Local(seed=0), round)
            assert not np.isfinite(replies.numbers()["loss"][4])
        else:
            send(grid, Local(seed=0), round)
            send(never, Local(seed=0), round)
    mine, theirs = grid.state(), never.state()
    for key in ("model", "optimizer"):
        row, other = (list(state[f"{key}#clients"]).index(4) for state in (mine, theirs))
        for path in (path for path in mine if path.startswith(f"{key}/")):
            np.testing.assert_array_equal(mine[path][row], theirs[path][other])
            assert np.isfinite(mine[path]).all()
