"""What a client process does about its connection, with none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedmoe.config import load_config, to_json
from fedmoe.errors import ConfigError
from fedmoe.lan import node
from fedmoe.lan.fleet import Access
from fedmoe.lan.lost import LostError, RejectedError, RunOverError, StrangersError
from fedmoe.lan.node import Node
from fedmoe.lan.recall import Recall
from fedmoe.messages import words
from fedmoe.messages.arrays import to_record
from fedmoe.messages.seams import ensure_task_identity, message_from_wire, wire_bytes

CONFIG = to_json(
    load_config(
        [
            "data=digits", "partition=iid", "partition.num_clients=2", "model=linear",
            "training.epochs=1", "strategy=fedavg",
        ]
    )
)  # fmt: skip


class Server:
    """Connections to it are made one after the other; `plan` says how each sending ends."""

    def __init__(self) -> None:
        ensure_task_identity()
        self.waiting: list[Message] = []
        self.sent: list[Message] = []
        self.plan: list[Exception] = []
        self.doors: list[Exception | None] = []  # how connections begin
        self.owing: bytes | None = None
        self.connections = 0

    def __call__(self, *_: Any) -> "Server":
        self.connections += 1
        return self

    def __enter__(self) -> "Server":
        if self.doors and (error := self.doors.pop(0)):
            raise error
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def owed(self) -> Message | None:
        return None if self.owing is None else message_from_wire(self.owing)

    def waive(self) -> None:
        self.owing = None

    def receive(self) -> Message | None:
        if not self.waiting:
            raise StopIteration  # nothing else to do for this test
        message = self.waiting.pop(0)
        self.owing = wire_bytes(message)
        return message

    def run_config(self, _: int) -> dict[str, str]:
        return {"config": CONFIG, "federation": "abc"}

    def send(self, reply: Message, _: float) -> None:
        if self.plan and (error := self.plan.pop(0)):
            raise error
        self.sent.append(reply)
        self.owing = None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(node, "FleetConnection", server)
    monkeypatch.setattr(node, "_RETRY_SECONDS", 0.0)
    return server


def train(number: int = 1) -> Message:
    arrays = {"weight": np.zeros((10, 64), np.float32), "bias": np.zeros(10, np.float32)}
    content = RecordDict({words.ARRAYS: to_record(arrays)})
    content[words.CONFIG] = ConfigRecord({words.SERVER_ROUND: number})
    return Message(content, 9, MessageType.TRAIN)


def node_of(root: Path) -> Node:
    access = Access(address="here:1")
    return Node(access=access, client=0, root=root, data=None, wait=60.0, stay=False)


def take_part(root: Path) -> None:
    with pytest.raises(StopIteration):
        node_of(root).run()


def test_a_reply_that_was_lost_on_its_way_is_sent_again(server: Server, tmp_path: Path) -> None:
    server.waiting, server.plan = [train()], [LostError("cut"), LostError("still")]
    take_part(tmp_path)
    (reply,) = server.sent
    assert server.connections == 3 and reply.has_content() and server.owing is None


def test_a_process_that_takes_anothers_place_says_that_there_is_no_reply(
    server: Server, tmp_path: Path
) -> None:
    server.owing = wire_bytes(train())
    take_part(tmp_path)
    (reply,) = server.sent
    assert reply.error.reason == "started again, or cut off, before it had answered"
    assert reply.error.code == words.CLIENT_FAILED  # a round is lost, and no more


@pytest.mark.parametrize("error", [LostError("cut"), RunOverError("over"), RejectedError("no")])
def test_that_is_tried_once(server: Server, tmp_path: Path, error: Exception) -> None:
    server.owing, server.plan = wire_bytes(train()), [error]
    take_part(tmp_path)
    assert server.owing is None and not server.sent


def test_a_reply_that_the_server_does_not_take_becomes_an_error(
    server: Server, tmp_path: Path
) -> None:
    server.waiting, server.plan = [train()], [RejectedError("body too large")]
    take_part(tmp_path)
    (reply,) = server.sent
    assert reply.error.reason == "the server does not take its reply: body too large"
    assert server.connections == 1


def test_a_state_that_another_process_works_with_is_refused(server: Server, tmp_path: Path) -> None:
    other = Recall(tmp_path, 0)
    assert other.claim()
    with pytest.raises(ConfigError, match="another process is the same client 0 there"):
        node_of(tmp_path).run()
    other.release()
    assert server.connections == 0
    take_part(tmp_path)
    take_part(tmp_path)  # the first has let go


def test_a_reply_to_a_run_that_is_over_is_dropped(server: Server, tmp_path: Path) -> None:
    server.waiting, server.plan = [train(), train()], [RunOverError("over")]
    take_part(tmp_path)
    assert server.connections == 1 and len(server.sent) == 1


def test_a_cut_does_not_make_another_client_of_it(server: Server, tmp_path: Path) -> None:
    server.waiting, server.plan = [train(2), train(3)], [LostError("cut")]
    take_part(tmp_path)
    assert [reply.error.code for reply in server.sent] == [words.STRANGER] * 2  # never greeted
    server.sent.clear()
    server.waiting, server.plan = [train(1), train(2)], [LostError("cut")]
    take_part(tmp_path / "other")
    assert [reply.has_content() for reply in server.sent] == [True, True]


def test_a_stranger_is_sent_away_unless_it_has_been_let_in(server: Server, tmp_path: Path) -> None:
    server.doors = [
        LostError("not there yet"),
        StrangersError("it does not know this client's key"),
    ]
    with pytest.raises(ConfigError, match=r"runtime\.server=here:1: it does not know this client"):
        take_part(tmp_path)
    server.waiting, server.plan = [train()], [LostError("cut")]
    server.doors = [None, StrangersError("somebody poses as the server")]
    take_part(tmp_path)
    assert server.sent[0].has_content() and server.connections == 5
