"""FedProto: its mean, what is refused of clients and of servers, and what it sends."""

import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)

from fedmoe.clients import answer, load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.data import Task
from fedmoe.errors import ConfigError
from fedmoe.guard import ReplyGuard
from fedmoe.messages.arrays import Stack, from_record, to_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import ensure_task_identity
from fedmoe.messages.sizes import content_bytes
from fedmoe.simulations import ContextGrid, InProcessGrid
from fedmoe.strategies import FedProto, build_strategy
from fedmoe.strategies.state import restore_strategy, strategy_state

OUT, F = 3, 2
TASK = Task(kind="classification", num_features=5, num_outputs=OUT)
CONFIG = load_config(
    [
        "strategy=fedproto",
        "partition=iid",
        "partition.num_clients=5",
        "model.hidden=[4]",
        "training.epochs=1",
    ]
)


@pytest.fixture(autouse=True)
def identity() -> None:
    ensure_task_identity()


def told(node: int, sums: dict[int, list[float]], counts: dict[int, int], loss: float) -> Message:
    """A reply; classes that are not named are the client's none."""
    sum_OF = np.array([sums.get(label, [0.0] * F) for label in range(OUT)], np.float32)
    count_O = np.array([counts.get(label, 0) for label in range(OUT)], np.int32)
    metrics = MetricRecord({"num-examples": int(count_O.sum()), "loss": loss})
    content = RecordDict(
        {"prototypes": to_record({"sum": sum_OF, "count": count_O}), "metrics": metrics}
    )
    return Message(content, reply_to=Message(RecordDict(), node, "train"))


def strategy() -> FedProto:
    return FedProto(TASK, F, seed=0)


def test_a_prototype_is_the_mean_over_all_samples_of_its_class() -> None:
    """By hand: (1 + 2) / (1 + 3), and not the mean of 1 and 2/3 of the two clients."""
    made = strategy()
    one = told(2, {0: [1.0, 4.0], 1: [2.0, -2.0]}, {0: 1, 1: 4}, loss=1.0)
    other = told(3, {0: [2.0, 0.0]}, {0: 3}, loss=3.0)
    arrays, metrics = made.aggregate_train(1, [other, one])
    assert arrays is None
    assert metrics == {"loss": pytest.approx((5 * 1.0 + 3 * 3.0) / 8)}
    assert made.mean_OF.tolist() == [[0.75, 1.0], [0.5, -0.5], [0.0, 0.0]]
    assert made.known_O.tolist() == [1, 1, 0]
    made.aggregate_train(2, [told(2, {2: [9.0, 3.0]}, {2: 3}, loss=0.0)])
    assert made.mean_OF.tolist() == [[0.75, 1.0], [0.5, -0.5], [3.0, 1.0]]
    assert made.known_O.tolist() == [1, 1, 1]


def test_prototypes_go_out_once_there_are_any_and_to_train_only() -> None:
    made, grid = strategy(), ContextGrid("{}", 4, lambda messages, contexts: [])
    arguments: Any = (ArrayRecord(), ConfigRecord(), grid)
    assert all("prototypes" not in m.content for m in made.configure_train(1, *arguments))
    made.aggregate_train(1, [told(2, {0: [1.0, 4.0]}, {0: 2}, loss=1.0)])
    sent = list(made.configure_train(2, *arguments))
    assert len(sent) == 4
    for message in sent:
        assert set(message.content) == {"config", "prototypes"}
        arrays = from_record(message.content.array_records["prototypes"])
        assert arrays["mean"].tolist() == [[0.5, 2.0], [0.0, 0.0], [0.0, 0.0]]
        assert arrays["known"].tolist() == [1, 0, 0]
    for message in made.configure_evaluate(2, *arguments):
        assert set(message.content) == {"config"}


def test_prototypes_are_the_strategys_state() -> None:
    made, other = strategy(), strategy()
    made.aggregate_train(1, [told(2, {0: [1.0, 4.0]}, {0: 2}, loss=1.0)])
    arrays, values = strategy_state(made)
    restore_strategy(other, arrays, json.loads(json.dumps(values)))
    assert torch.equal(other.mean_OF, made.mean_OF)
    assert torch.equal(other.known_O, made.known_O)
    assert other.known_O.dtype == torch.uint8


def test_no_replies_leave_the_prototypes() -> None:
    made = strategy()
    assert made.aggregate_train(1, []) == (None, None)
    assert not made.known_O.any()


# ------------------------------------------------------------------------ what is refused

Spoil = Callable[[Part], None]


def stack_of(part: Part) -> Stack:
    stack = part.records["prototypes"]
    assert isinstance(stack, Stack)
    return stack


def count(change: int, row: int = 2) -> Spoil:
    """The first class's count, as if there were more of it."""

    def spoil(part: Part) -> None:
        stack_of(part).tensors["count"][row, 0] += change

    return spoil


def first_sum(value: float, row: int = 2) -> Spoil:
    def spoil(part: Part) -> None:
        stack_of(part).tensors["sum"][row, 0, -1] = value

    return spoil


def negative(part: Part) -> None:
    """The whole is right."""
    counts = stack_of(part).tensors["count"]
    counts[2, 1] += counts[2, 0] + 3
    counts[2, 0] = -3


def weightless(part: Part) -> None:
    """Counts that pass, and a sum that would move the mean of a class that was not counted."""
    counts = stack_of(part).tensors["count"]
    counts[2, 1] += counts[2, 0]
    counts[2, 0] = 0


def fractions(part: Part) -> None:
    tensors = stack_of(part).tensors
    tensors["count"] = tensors["count"].float()
    tensors["count"][2, :2] += torch.tensor([0.5, -0.5])


def wider(part: Part) -> None:
    tensors = stack_of(part).tensors
    tensors["sum"] = tensors["sum"].repeat(1, 1, 2)


def other_classes(part: Part) -> None:
    tensors = stack_of(part).tensors
    tensors["count"] = tensors["count"][:, :4]


def without_counts(part: Part) -> None:
    del stack_of(part).tensors["count"]


def more_arrays(part: Part) -> None:
    stack_of(part).tensors["extra"] = torch.zeros(5, 1)


def no_prototypes(part: Part) -> None:
    del part.records["prototypes"]


def as_numbers(part: Part) -> None:
    part.records["prototypes"] = {"sum": np.zeros(5), "count": np.zeros(5)}


def with_weights(part: Part) -> None:
    part.records["arrays"] = Stack({"weights.0": torch.zeros(5, 2)})


SPOILT: list[Any] = [
    pytest.param(lambda part: None, 0, "", id="honest"),
    pytest.param(count(1), 1, "(num-examples) in all", id="one sample too many"),
    pytest.param(count(-1), 1, "(num-examples) in all", id="one sample too few"),
    pytest.param(count(2**31 - 1), 1, "prototypes/count=[", id="overflow"),
    pytest.param(negative, 1, "prototypes/count=[-3,", id="negative"),
    pytest.param(weightless, 1, "a class with 0 must have a sum of 0", id="weightless sum"),
    pytest.param(fractions, 5, "count is float32[10], expected int32[10]", id="half a sample"),
    pytest.param(first_sum(float("nan")), 1, "not finite", id="nan"),
    pytest.param(first_sum(float("-inf")), 1, "not finite", id="inf"),
    pytest.param(first_sum(-2e12), 1, "no sum may be beyond 1e+12", id="absurd"),
    pytest.param(wider, 5, "sum is float32[10, 8], expected float32[10, 4]", id="wider"),
    pytest.param(other_classes, 5, "count is int32[4], expected int32[10]", id="classes"),
    pytest.param(without_counts, 5, "lacks count", id="no counts"),
    pytest.param(more_arrays, 5, "has unknown extra", id="more"),
    pytest.param(no_prototypes, 5, "the reply has no prototypes", id="none"),
    pytest.param(as_numbers, 5, "the reply has no prototypes", id="numbers"),
    pytest.param(with_weights, 5, "weights were not asked for", id="weights"),
]


def one_round(spoil: Spoil) -> tuple[FedProto, Broadcast, Replies]:
    """What five clients reply in round 1, some of it spoilt."""
    experiment = load_experiment(to_json(CONFIG))
    grid, made = InProcessGrid(experiment), build_strategy(CONFIG, experiment.data.task)
    assert isinstance(made, FedProto)
    sent = made.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
    assert isinstance(sent, Broadcast)
    replies = grid.send_and_receive(sent)
    assert isinstance(replies, Replies)
    assert (stack_of(replies.parts[0]).tensors["count"][:, :2] > 0).all(), "for `count` to matter"
    spoil(replies.parts[0])
    return made, sent, replies


@pytest.mark.parametrize(("spoil", "refused", "reason"), SPOILT)
def test_columns_are_judged_as_messages_are(spoil: Spoil, refused: int, reason: str) -> None:
    results = []
    for as_columns in (True, False):
        made, sent, replies = one_round(spoil)
        guard = ReplyGuard(CONFIG.runtime, made)
        found = guard.inspect(sent, replies if as_columns else list(replies))
        made.aggregate_train(1, found.good)
        results.append((found.failures, found.bytes_up, made.mean_OF, made.known_O.tolist()))
    mine, theirs = results
    assert (mine[0], mine[1], mine[3]) == (theirs[0], theirs[1], theirs[3])
    torch.testing.assert_close(mine[2], theirs[2])
    assert len(mine[0]) == refused
    assert all(reason in one for one in mine[0].values())


@pytest.mark.parametrize(("spoil", "refused", "reason"), SPOILT)
@pytest.mark.parametrize("as_columns", [True, False])
def test_without_a_guard_nobody_learns_from_a_bad_reply(
    spoil: Spoil, refused: int, reason: str, as_columns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    made, _, replies = one_round(spoil)
    with caplog.at_level(logging.WARNING):
        made.aggregate_train(1, replies if as_columns else list(replies))
    assert len(caplog.records) == refused
    others = [row for row in range(5) if row != 2]
    honest, _, again = one_round(lambda part: None)
    if refused < 5:
        kept = np.array(others) if refused else np.arange(5)
        honest.aggregate_train(1, again.select(kept))
    torch.testing.assert_close(made.mean_OF, honest.mean_OF)
    assert torch.equal(made.known_O, honest.known_O)


def test_honest_columns_are_not_looked_at_as_messages() -> None:
    made, sent, replies = one_round(lambda part: None)
    found = ReplyGuard(CONFIG.runtime, made).inspect(sent, replies)
    made.aggregate_train(1, found.good)
    assert not replies._made
    assert set(found.bytes_up.values()) == {content_bytes(replies[0].content)}


@pytest.mark.parametrize("number", [None, [1, 1]])
def test_a_message_without_one_number_of_examples_is_refused(number: list[int] | None) -> None:
    made, reply = strategy(), told(2, {0: [1.0, 4.0]}, {0: 1}, loss=1.0)
    del reply.content["metrics"]
    if number is not None:
        reply.content["metrics"] = MetricRecord({"num-examples": number})
    with pytest.raises(ValueError, match="num-examples"):
        made.check_reply(reply)


# ------------------------------------------------------------------------ what servers send


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"mean": np.zeros((10, 4), np.float32)}, "the prototypes have shapes"),
        ({"mean": np.zeros((10, 5), np.float32), "known": np.ones(10, np.uint8)}, r"\(10, 5\)"),
        ({"mean": np.full((10, 4), np.nan, np.float32), "known": np.ones(10)}, "are not finite"),
        (None, "record 'prototypes' must be an ArrayRecord"),
    ],
)
def test_prototypes_that_do_not_fit_are_an_error_reply(arrays: Any, reason: str) -> None:
    text = to_json(CONFIG)
    record = MetricRecord({"mean": 1.0}) if arrays is None else to_record(arrays)
    message = Message(RecordDict({"prototypes": record}), 2, "train")
    context = Context(1, 2, {"partition-id": 0}, RecordDict(), {"config": text})
    (reply,) = answer([message], [context])
    assert reply.has_error() and reason.replace("\\", "") in (reply.error.reason or "")
    assert not context.state.array_records


def test_clients_may_be_sent_different_prototypes() -> None:
    """Each is pulled to what it was sent, and the first and the last to nothing."""
    text = to_json(CONFIG)
    means = {c: np.full((10, 4), value, np.float32) for c, value in ((1, 0.0), (2, 1.0), (3, 5.0))}
    known = np.ones(10, np.uint8)

    def trained(clients: list[int]) -> list[dict[str, torch.Tensor]]:
        contexts = [
            Context(1, c + 2, {"partition-id": c}, RecordDict(), {"config": text}) for c in clients
        ]
        sent = {
            c: RecordDict({"prototypes": to_record({"mean": mean, "known": known})})
            for c, mean in means.items()
        }
        messages = [Message(sent.get(c, RecordDict()), c + 2, "train") for c in clients]
        assert not any(reply.has_error() for reply in answer(messages, contexts))
        return [from_record(context.state.array_records["model"]) for context in contexts]

    together = trained([0, 1, 2, 3, 4])
    for client in range(5):
        (alone,) = trained([client])
        for name, value in alone.items():
            torch.testing.assert_close(together[client][name], value, rtol=0, atol=1e-5)


def test_a_mixtures_load_is_told_beside_the_prototypes() -> None:
    config = load_config(
        ["strategy=fedproto", "model=moe", "model/router=loss_free", "model.hidden=[4]",
         "partition=iid", "partition.num_clients=3"]
    )  # fmt: skip
    experiment = load_experiment(to_json(config))
    grid, made = InProcessGrid(experiment), build_strategy(config, experiment.data.task)
    for round in (1, 2):
        sent = list(made.configure_train(round, ArrayRecord(), ConfigRecord(), grid))
        assert set(sent[0].content) - {"config"} == (
            {"prototypes", "expert-load"} if round > 1 else set()
        )
        replies = ReplyGuard(config.runtime, made).inspect(sent, grid.send_and_receive(sent))
        assert not replies.failures
        assert set(replies.good[0].content) == {"prototypes", "expert-load", "metrics"}
        made.aggregate_train(round, replies.good)


def test_a_task_without_classes_is_refused() -> None:
    config = load_config(["strategy=fedproto", "data=synthetic_linear", "partition=natural"])
    with pytest.raises(ConfigError, match="needs classes, but the task is regression"):
        load_experiment(to_json(config))


def test_the_server_knows_the_width_from_the_model() -> None:
    for words, width in ((["model=linear"], 5), (["model=mlp", "model.hidden=[7,6]"], 6)):
        made = build_strategy(load_config(["strategy=fedproto", *words]), TASK)
        assert isinstance(made, FedProto)
        assert made.mean_OF.shape == (OUT, width)
