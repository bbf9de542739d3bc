"""Phases answered in shards, against the same phase answered at once."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import strategy as flower

from fedmoe.clients import Clients, Experiment, load_experiment
from fedmoe.clients.states import StackedStates
from fedmoe.config import load_config, to_json
from fedmoe.data import pooled
from fedmoe.data.federation import Ints
from fedmoe.guard import ReplyGuard
from fedmoe.messages.arrays import from_record, to_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.replies import Replies
from fedmoe.models import Parameters
from fedmoe.simulations import InProcessGrid
from fedmoe.simulations.shards import answer_in_shards, answer_shard, joined, taken
from fedmoe.strategies import FedAdam, FedAvg, FedProx, Local, StackedFedAvg

CLIENTS = 7
WORDS = [
    "data=synthetic_linear", "data.num_clients=7", "data.samples_per_client=40",
    "data.num_features=3", "partition=quantity", "partition.num_clients=7",
    "partition.min_samples=6", "model=linear", "training.learning_rate=0.02",
]  # fmt: skip


@cache
def experiment_of(*more: str) -> Experiment:
    return load_experiment(to_json(load_config([*WORDS, *more])))


def shards_of(size: int, *more: str) -> Experiment:
    return experiment_of(f"runtime.shard_size={size}", *more)


def sent_by(strategy: StackedFedAvg, experiment: Experiment, evaluate: bool = False) -> Broadcast:
    configure = strategy.configure_evaluate if evaluate else strategy.configure_train
    arrays = to_record(experiment.initial)
    sent = configure(1, arrays, ConfigRecord(), InProcessGrid(experiment))
    assert isinstance(sent, Broadcast)
    return sent


def answered(
    experiment: Experiment, messages: Sequence[Message], states: StackedStates | None = None
) -> Replies:
    nodes = (
        messages.nodes
        if isinstance(messages, Broadcast)
        else [message.metadata.dst_node_id for message in messages]
    )
    clients: Ints = np.array(nodes) - 2
    members = Clients(experiment, states or StackedStates())
    return answer_in_shards(members, messages, clients)


def merged_by(
    strategy: StackedFedAvg, experiment: Experiment
) -> tuple[Parameters, dict[str, Any], Replies]:
    """One round's model, metrics and replies."""
    sent = sent_by(strategy, experiment)
    replies = answered(experiment, sent)
    arrays, metrics = strategy.aggregate_train(1, replies)
    assert isinstance(arrays, ArrayRecord) and isinstance(metrics, MetricRecord)
    return from_record(arrays), dict(metrics), replies


def assert_close(mine: Parameters, theirs: Parameters) -> None:
    assert list(mine) == list(theirs)
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)


def fedadam() -> StackedFedAvg:
    return FedAdam(seed=0, eta=0.05, beta_1=0.9, beta_2=0.99, tau=1e-2)


class Even(StackedFedAvg):
    """Every client counts the same."""

    def weights(self, replies: Replies) -> Any:
        return np.full(len(replies), 1 / len(replies))


class Distrustful(StackedFedAvg):
    """Looks at each client's weights."""

    def check_reply(self, reply: Message) -> None:
        if "weight" not in reply.content.array_records["arrays"]:
            raise ValueError("no weights to look at")


class Picky(Distrustful):
    """Says that a mean is enough, and yet refuses whom it likes."""

    mergeable = True

    def check_reply(self, reply: Message) -> None:
        super().check_reply(reply)
        if reply.metadata.src_node_id == 4:
            raise ValueError("not this one")


class Median(flower.FedMedian, StackedFedAvg):
    """Flower's median on our sampling."""


class Mean:
    """A mixin that merges in its own way."""

    def merge(self, replies: Replies) -> Parameters:
        return {name: tensor.mean(dim=0) for name, tensor in replies.arrays().items()}


class Mixed(Mean, FedAvg):
    """Plain means, by way of the mixin."""


STRATEGIES: list[Callable[[], StackedFedAvg]] = [
    FedAvg, lambda: FedProx(seed=0, proximal_mu=0.5), fedadam, Even, Distrustful, Median, Mixed
]  # fmt: skip
MERGEABLE: list[type[Any]] = [FedAvg, FedProx, FedAdam, Local]


@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("make", STRATEGIES)
def test_no_strategy_tells_shards_from_the_whole(
    make: Callable[[], StackedFedAvg], size: int
) -> None:
    """Clients of very different sizes, so that a wrong weight shows."""
    experiment = experiment_of()
    counts = pooled(experiment.data).parts["train"].counts_K
    assert counts.max() > 3 * counts.min()
    expected, expected_metrics, whole = merged_by(make(), experiment)
    strategy, parted = make(), shards_of(size)
    found, metrics, replies = merged_by(strategy, parted)
    assert_close(found, expected)
    assert metrics == pytest.approx(expected_metrics, rel=1e-5)
    for name, column in whole.numbers().items():
        np.testing.assert_allclose(replies.numbers()[name], column, rtol=1e-5)
    sent = sent_by(strategy, parted)
    guard = ReplyGuard(parted.config.runtime, strategy)
    inspection = guard.inspect(sent, answered(parted, sent))
    assert not inspection.failures
    sizes = guard.inspect(sent, answered(experiment, list(sent))).bytes_up
    assert inspection.bytes_up == sizes


@pytest.mark.parametrize("kind", [*MERGEABLE, Even, Distrustful, Median, Mixed])
def test_only_who_merges_by_the_mean_is_mergeable(kind: type[StackedFedAvg]) -> None:
    assert kind.mergeable == (kind in MERGEABLE)

    class Heir(kind):  # type: ignore[valid-type, misc]
        pass

    class Owner(kind):  # type: ignore[valid-type, misc]
        mergeable = True

        def merge(self, replies: Replies) -> Parameters:
            return replies.mean(self.weights(replies))

    assert Heir.mergeable == kind.mergeable
    assert Owner.mergeable


def test_arrays_of_mergeable_shards_are_merged_at_once() -> None:
    replies = answered(shards_of(3), sent_by(FedAvg(seed=0), experiment_of()))
    assert [sorted(part.rows.tolist()) for part in replies.parts] == [[0, 1, 2], [3, 4, 5], [6]]
    assert all("arrays" not in part.records and part.means for part in replies.parts)


@pytest.mark.parametrize("make", [Even, Distrustful, Mixed])
def test_arrays_of_other_shards_stay(make: type[StackedFedAvg]) -> None:
    replies = answered(shards_of(3), sent_by(make(seed=0), experiment_of()))
    assert all("arrays" in part.records and not part.means for part in replies.parts)
    assert len(replies.arrays()["weight"]) == CLIENTS


def test_a_mean_by_other_weights_than_it_was_taken_is_refused() -> None:
    """Who says `mergeable` and is not would get other numbers in shards than at once."""

    class Wrong(Even):
        mergeable = True

    strategy, parted = Wrong(seed=0), shards_of(3)
    replies = answered(parted, sent_by(strategy, parted))
    with pytest.raises(ValueError, match="it asks for one by other weights"):
        strategy.aggregate_train(1, replies)


def test_who_refuses_replies_gets_no_means() -> None:
    strategy, parted = Picky(seed=0), shards_of(3)
    sent = sent_by(strategy, parted)
    result = ReplyGuard(parted.config.runtime, strategy).inspect(sent, answered(parted, sent))
    assert result.failures == {4: "not this one"}


@pytest.mark.parametrize("listed", [False, True])
def test_evaluation_is_never_merged(listed: bool) -> None:
    sent = sent_by(FedAvg(seed=0), experiment_of(), evaluate=True)
    whole = answered(experiment_of(), sent).numbers()
    parts = answered(shards_of(2), list(sent) if listed else sent)
    assert not any(part.means for part in parts.parts)
    for name, column in parts.numbers().items():
        np.testing.assert_allclose(column, whole[name], rtol=1e-5, atol=1e-7)


def test_messages_in_a_list_are_answered_in_shards_unmerged() -> None:
    messages = list(sent_by(FedAvg(seed=0), experiment_of()))[::-1]
    whole = answered(experiment_of(), messages)
    parts = answered(shards_of(2), messages)
    assert parts.nodes == whole.nodes == list(range(8, 1, -1))
    assert_close(parts.arrays(), whole.arrays())


def test_private_models_do_not_depend_on_shards() -> None:
    found = []
    for experiment in (experiment_of(), shards_of(2)):
        states = StackedStates()
        sent = sent_by(Local(seed=0), experiment)
        for _ in range(2):
            assert not any(part.means for part in answered(experiment, sent, states).parts)
        state = states.state()
        order = state["model#clients"].argsort()
        found.append({path: array[order] for path, array in state.items()})
    assert sorted(found[0]) == sorted(found[1]) == ["model#clients", "model/bias", "model/weight"]
    for path, array in found[0].items():
        np.testing.assert_allclose(found[1][path], array, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------- failures


def spoilt(experiment: Experiment, *clients: int) -> Experiment:
    """The same, but some clients have a NaN among their samples."""
    data = pooled(experiment.data)
    x_ND = data.x_ND.copy()
    for client in clients:
        x_ND[data.parts["train"].of(client)[0]] = np.nan
    return replace(experiment, data=replace(data, x_ND=x_ND))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("bad", [(1,), (0, 1), (2, 3, 6)])
def test_bad_clients_are_in_no_mean_and_fail_for_the_same_reasons(
    size: int, bad: tuple[int, ...]
) -> None:
    strategy = FedAvg(seed=0)
    verdicts = []
    for experiment in (experiment_of(), shards_of(size)):
        broken = spoilt(experiment, *bad)
        sent = sent_by(strategy, broken)
        replies = answered(broken, sent)
        result = ReplyGuard(experiment.config.runtime, strategy).inspect(sent, replies)
        arrays, merged = strategy.aggregate_train(1, result.good)
        assert arrays is not None and merged is not None
        verdicts.append((result, from_record(arrays), dict(merged)))
    (whole, expected, expected_metrics), (parts, found, metrics) = verdicts
    assert list(whole.failures) == [client + 2 for client in bad]
    assert parts.failures == whole.failures
    assert parts.refused == whole.refused == whole.failures.keys()
    assert parts.bytes_up == whole.bytes_up
    assert_close(found, expected)
    assert metrics == pytest.approx(expected_metrics, rel=1e-5)


def test_shards_of_bad_clients_alone_leave_nothing() -> None:
    broken = spoilt(shards_of(2), *range(CLIENTS))
    sent = sent_by(FedAvg(seed=0), broken)
    replies = answered(broken, sent)
    assert replies.parts == []
    assert all(reply.has_error() for reply in replies)
    assert FedAvg(seed=0).aggregate_train(1, replies) == (None, None)


def test_a_client_that_raises_fails_alone_in_its_shard() -> None:
    experiment = shards_of(3)
    sent = sent_by(FedAvg(seed=0), experiment)
    sent[4].content["config"] = ConfigRecord({"server-round": "one"})
    replies = answered(experiment, sent)
    result = ReplyGuard(experiment.config.runtime).inspect(sent, replies)
    assert result.failures == {6: "ValueError: config 'server-round' must be a number, got 'one'"}
    assert not result.refused  # it said so itself
    assert isinstance(result.good, Replies)
    assert result.good.nodes == [2, 3, 4, 5, 7, 8]
    fresh = sent_by(FedAvg(seed=0), experiment)
    healthy = answered(experiment_of(), fresh).select(np.array([0, 1, 2, 3, 5, 6]))
    found, _ = FedAvg(seed=0).aggregate_train(1, result.good)
    expected, _ = FedAvg(seed=0).aggregate_train(1, healthy)
    assert found is not None and expected is not None
    assert_close(from_record(found), from_record(expected))


def test_a_reply_without_weights_is_not_taken_for_a_part_of_the_mean() -> None:
    """Its message was sent without, by a strategy that changed what it sends."""
    experiment = shards_of(1)
    sent = sent_by(FedAvg(seed=0), experiment)
    del sent[2].content["arrays"]
    replies = answered(experiment, sent)
    with pytest.raises(ValueError, match="only the mean of some clients' arrays has come"):
        FedAvg(seed=0).aggregate_train(1, replies)


# ------------------------------------------------------------------------------------------ pieces


def test_taken_messages_stay_what_they_are() -> None:
    sent = sent_by(FedAvg(seed=0), experiment_of())
    places = np.array([4, 1])
    some = taken(sent, places)
    assert isinstance(some, Broadcast) and list(some.nodes) == [6, 3]
    messages = list(sent)
    assert [id(m) for m in taken(messages, places)] == [id(messages[4]), id(messages[1])]


def test_joined_shards_say_what_each_said() -> None:
    """Shards that cross, one of them with a failed client."""
    experiment = experiment_of()
    sent = sent_by(Even(seed=0), experiment)
    sent[5].content["config"] = ConfigRecord({"server-round": "one"})
    shards = []
    for rows in ([6, 0, 3], [5, 1], [2, 4]):
        places = np.array(rows)
        members = Clients(experiment, StackedStates())
        own = answer_shard(members, taken(sent, places), places)
        shards.append((places, own))
    replies = joined(sent, shards)
    whole = answered(experiment, sent)
    assert replies[5].has_error() and list(replies.plain) == [5]
    good, expected = Replies.of(replies), Replies.of(whole)
    assert good.nodes == expected.nodes == [2, 3, 4, 5, 6, 8]
    assert_close(good.arrays(), expected.arrays())
    for name, column in expected.numbers().items():
        np.testing.assert_allclose(good.numbers()[name], column, rtol=1e-5)
    for mine, theirs in zip(replies, whole, strict=True):
        assert mine.metadata.src_node_id == theirs.metadata.src_node_id
