from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as StockFedAvg

from fedmoe.messages.arrays import CohortRecord, Stack, stack_of, to_record
from fedmoe.messages.seams import SERVER_NODE_ID, empty_run
from fedmoe.simulations import ContextGrid
from fedmoe.strategies import FedAvg

Handler = Callable[[Message, Context], RecordDict]
CLIENTS = 4


def model() -> ArrayRecord:
    return to_record({"w": np.arange(3, dtype=np.float32), "b": np.array([7], np.float32)})


def grid_of(handler: Handler, clients: int = CLIENTS) -> ContextGrid:
    """A grid whose clients each answer by `handler`."""

    def answer(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        return [
            Message(handler(message, context), reply_to=message)
            for message, context in zip(messages, contexts, strict=True)
        ]

    return ContextGrid('{"some": "config"}', clients, answer)


def who(message: Message, context: Context) -> RecordDict:
    """Tells which client got which message."""
    partition = cast(int, context.node_config["partition-id"])
    asked = cast(MetricRecord, message.content["ask"])["number"]
    return RecordDict({"told": MetricRecord({"client": partition, "number": cast(int, asked)})})


def ask(grid: Grid, *nodes: int) -> list[Message]:
    return [
        grid.create_message(RecordDict({"ask": MetricRecord({"number": n})}), "train", n, "g")
        for n in nodes
    ]


def told(reply: Message) -> tuple[int, int]:
    record = cast(MetricRecord, reply.content["told"])
    return cast(int, record["client"]), cast(int, record["number"])


# ------------------------------------------------------------------------- Flower's contract


def test_it_is_a_grid_with_a_run() -> None:
    grid = grid_of(who)
    assert isinstance(grid, Grid)
    assert grid.run.run_id == 1
    run = empty_run(7)
    grid.set_run(run)
    assert grid.run is run


def test_node_ids_are_stable_and_belong_to_clients() -> None:
    grid = grid_of(who)
    nodes = list(grid.get_node_ids())
    assert nodes == list(grid.get_node_ids()) == [n.node_id for n in grid.get_nodes()]
    assert nodes == list(grid_of(who).get_node_ids())
    assert SERVER_NODE_ID not in nodes
    assert [grid.client_id(node) for node in nodes] == list(range(CLIENTS)) == [*range(len(grid))]


def test_every_client_has_a_context_of_its_own() -> None:
    grid = grid_of(who)
    for client, (context, node) in enumerate(zip(grid.contexts, grid.get_node_ids(), strict=True)):
        assert context.node_id == node
        assert context.node_config == {"partition-id": client, "num-partitions": CLIENTS}
        assert context.run_config == {"config": '{"some": "config"}'}
    assert len({id(context.state) for context in grid.contexts}) == CLIENTS


def test_messages_reach_their_client_whatever_their_order() -> None:
    grid = grid_of(who)
    nodes = list(grid.get_node_ids())[::-1]
    replies = list(grid.send_and_receive(iter(ask(grid, *nodes)), timeout=1e-9))
    assert [told(reply) for reply in replies] == [(3, 5), (2, 4), (1, 3), (0, 2)]


def test_what_a_created_message_says() -> None:
    grid = grid_of(who)
    (message,) = ask(grid, 3)
    assert message.metadata.src_node_id == SERVER_NODE_ID
    assert (message.metadata.dst_node_id, message.metadata.group_id) == (3, "g")
    assert message.metadata.message_type == "train"
    content = RecordDict()
    assert grid.create_message(content, "query", 2, "", ttl=9.0).metadata.ttl == 9.0
    assert grid.create_message(content, "query", 2, "").content is content


def test_what_a_reply_says() -> None:
    grid = grid_of(who)
    messages = ask(grid, 4, 2)
    for message, reply in zip(messages, grid.send_and_receive(messages), strict=True):
        sent, got = message.metadata, reply.metadata
        assert sent.message_id
        assert got.reply_to_message_id == sent.message_id
        assert (got.src_node_id, got.dst_node_id) == (sent.dst_node_id, SERVER_NODE_ID)
        assert (got.message_type, got.group_id, got.run_id) == ("train", "g", sent.run_id)


def test_push_and_pull_deliver_each_reply_once() -> None:
    grid = grid_of(who)
    first = list(grid.push_messages(iter(ask(grid, 2, 3))))
    second = list(grid.push_messages(ask(grid, 2)))
    assert len({*first, *second}) == 3
    assert [told(reply) for reply in grid.pull_messages([*second, first[1]])] == [(0, 2), (1, 3)]
    assert [told(reply) for reply in grid.pull_messages([*first, *second])] == [(0, 2)]
    assert list(grid.pull_messages([*first, *second, "unknown"])) == []


def test_sending_leaves_earlier_replies_to_be_pulled() -> None:
    grid = grid_of(who)
    pushed = list(grid.push_messages(ask(grid, 5)))
    assert [told(reply) for reply in grid.send_and_receive(ask(grid, 2))] == [(0, 2)]
    assert [told(reply) for reply in grid.pull_messages(pushed)] == [(3, 5)]


@pytest.mark.parametrize("node", [0, SERVER_NODE_ID, CLIENTS + 2, 2**60])
def test_an_unknown_node_is_an_error_reply_and_the_others_answer(node: int) -> None:
    grid = grid_of(who)
    replies = {r.metadata.src_node_id: r for r in grid.send_and_receive(ask(grid, 2, node, 4))}
    assert set(replies) == {2, node, 4}
    assert replies[node].error.reason == "no such node"
    assert [told(replies[2]), told(replies[4])] == [(0, 2), (2, 4)]


def test_a_silent_client_is_a_missing_reply() -> None:
    grid = ContextGrid("", CLIENTS, lambda messages, contexts: [])
    assert list(grid.send_and_receive(ask(grid, 2, 3))) == []


# --------------------------------------------------------------------------------- isolation


def vandal(message: Message, context: Context) -> RecordDict:
    """Checks that its message is whole, then wrecks it."""
    content = message.content
    arrays = cast(ArrayRecord, content["arrays"])
    assert set(content) == {"arrays", "config"}
    assert {name: a.numpy().tolist() for name, a in arrays.items()} == {"w": [0, 1, 2], "b": [7]}
    assert cast(ConfigRecord, content["config"])["server-round"] == 1
    del arrays["b"]
    values = arrays["w"].numpy()
    values += 100
    arrays["w"] = Array(values)
    cast(ConfigRecord, content["config"])["server-round"] = 99
    content["config"] = ConfigRecord({"mine": context.node_id})
    content["more"] = MetricRecord()
    content.pop("arrays")
    return RecordDict({"arrays": arrays})


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("strategy", [StockFedAvg(), FedAvg(seed=0)])
def test_a_client_changes_its_own_copy_only(strategy: StockFedAvg, stacked: bool) -> None:
    arrays = model()
    if stacked:
        tensors = {name: torch.from_numpy(a.numpy())[None] for name, a in arrays.items()}
        arrays = CohortRecord(Stack(tensors), 0)
    grid = grid_of(vandal)
    sent = list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    if isinstance(strategy, FedAvg):
        assert (stack_of(arrays) is not None) == stacked  # sending makes no arrays
    else:
        assert len({id(message.content) for message in sent}) == 1  # Flower's share one
    replies = list(grid.send_and_receive(sent))
    assert len(replies) == CLIENTS
    for message in sent:
        assert set(message.content) == {"arrays", "config"}
        assert message.content["config"] == ConfigRecord({"server-round": 1})
        assert message.content["arrays"] is arrays
    assert {name: a.numpy().tolist() for name, a in arrays.items()} == {"w": [0, 1, 2], "b": [7]}
    for reply in replies:
        wrecked = cast(ArrayRecord, reply.content["arrays"])
        assert wrecked["w"].numpy().tolist() == [100, 101, 102]


def test_state_stays_with_its_client() -> None:
    def remember(message: Message, context: Context) -> RecordDict:
        seen = context.state.metric_records.get("seen", MetricRecord({"times": 0}))
        again = MetricRecord({"times": cast(int, seen["times"]) + 1})
        context.state["seen"] = again
        return RecordDict({"told": MetricRecord({"client": 0, **again, "number": again["times"]})})

    grid = grid_of(remember)
    grid.send_and_receive(ask(grid, 2, 3))
    replies = grid.send_and_receive(ask(grid, 3, 4))
    assert [told(reply)[1] for reply in replies] == [2, 1]


# --------------------------------------------------------------------------------- checkpoints


def test_state_and_restore_bit_for_bit() -> None:
    nan = np.array([0x7FC00001, 0x80000000], np.uint32).view(np.float32)  # a NaN's own bits, -0
    stack = Stack({"w": torch.arange(6.0).reshape(2, 3), "layers/0/b": torch.ones(2, 1)})
    grid = grid_of(who, clients=12)
    grid.contexts[0].state["model"] = to_record({"x": nan, "y/z": np.array(3, np.int64)})
    grid.contexts[0].state["optimizer"] = to_record({"x": np.zeros((0, 2), np.float64)})
    grid.contexts[2].state["model"] = CohortRecord(stack, 1)
    grid.contexts[11].state["model"] = CohortRecord(stack, 0)
    grid.contexts[11].state["numbers"] = MetricRecord({"not": 1.0})
    state = grid.state()
    assert set(state) == {
        "0/model/x", "0/model/y/z", "0/optimizer/x", "2/model/w", "2/model/layers/0/b",
        "11/model/w", "11/model/layers/0/b",
    }  # fmt: skip
    assert state["0/model/x"].tobytes() == nan.tobytes()
    assert state["2/model/w"].tolist() == [3, 4, 5]

    other = grid_of(who, clients=12)
    other.restore(state)
    again = other.state()
    assert list(again) == list(state)
    for path, array in state.items():
        assert (again[path].dtype, again[path].shape) == (array.dtype, array.shape)
        assert again[path].tobytes() == array.tobytes()
    assert len(other.contexts[1].state) == 0
    assert cast(ArrayRecord, other.contexts[0].state["model"])["y/z"].numpy() == 3


def test_a_grid_without_state() -> None:
    grid = grid_of(who)
    assert grid.state() == {}
    grid.restore({})
    assert all(len(context.state) == 0 for context in grid.contexts)
