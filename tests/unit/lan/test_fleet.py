"""What is relied on of Flower's Fleet and Runtime APIs, which are not public."""

import inspect
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Error, Message, MessageType, MetricRecord, RecordDict
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, HEARTBEAT_PATIENCE
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedResponse,
    PullObjectResponse,
    PushObjectResponse,
)
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedmoe.lan import UNKNOWN_KEY, fast_grid, fleet, heartbeat
from fedmoe.lan.fast_grid import FastGrid, fast
from fedmoe.lan.fleet import Access, FleetConnection
from fedmoe.lan.lost import LostError, RejectedError, RunOverError, StrangersError
from fedmoe.lan.packing import is_packed
from fedmoe.lan.recall import Recall
from fedmoe.messages.arrays import to_record
from fedmoe.messages.seams import empty_run, ensure_task_identity, set_message_id

ACCESS = Access(address="here:1")


class Link:
    """Flower's client, and the SuperLink behind it: objects come only when asked for twice."""

    def __init__(self) -> None:
        self.waiting: list[Message] = []
        self.objects: dict[str, bytes] = {}
        self.asked: dict[str, int] = {}
        self.pushed: list[Any] = []
        self.calls: list[str] = []
        self.error: Exception | None = None
        self.known: bool | None = True  # whether it knows the node of a sign of life

    def __getattr__(self, name: str) -> Any:
        def call(request: Any) -> Any:
            self.calls.append(name)
            if self.error is not None:
                raise self.error
            return self.reply(name, request)

        return call

    def hold(self, message: Message) -> None:
        set_message_id(message, message.object_id)
        self.waiting.append(message)
        self.objects |= {key: o.deflate() for key, o in get_all_nested_objects(message).items()}

    def reply(self, name: str, request: Any) -> Any:
        if name == "SendNodeHeartbeat":
            if self.known is None:
                raise answered(401)
            return SendNodeHeartbeatResponse(success=self.known)
        if name == "ActivateNode":
            return type("Activated", (), {"node_id": 77})
        if name == "PullMessages":
            kind = PullMessagesResponse if hasattr(request, "node") else PullAppMessagesResponse
            now, self.waiting = self.waiting[:1], self.waiting[1:]
            return kind(
                messages_list=[message_to_proto(message) for message in now],
                message_object_trees=[get_object_tree(message) for message in now],
            )
        if name == "PullObject":
            self.asked[request.object_id] = times = self.asked.get(request.object_id, 0) + 1
            found = self.objects[request.object_id] if times > 1 else b""
            return PullObjectResponse(
                object_found=True, object_available=times > 1, object_content=found
            )
        if name == "PushMessages":
            self.pushed.append(request)
            ids = [key for tree in request.message_object_trees for key in _ids(tree)]
            return PushMessagesResponse(objects_to_push=ids, session_id="s")
        if name == "PushObject":
            assert request.session_id == "s"
            self.objects[request.object_id] = request.object_content
            return PushObjectResponse(stored=True)
        return ConfirmMessageReceivedResponse()

    def close(self) -> None:
        self.calls.append("close")


def _ids(tree: Any) -> Iterator[str]:
    yield tree.object_id
    for child in tree.children:
        yield from _ids(child)


def answered(status: int) -> httpx.HTTPStatusError:
    response = httpx.Response(status, request=httpx.Request("POST", "http://here"), text="{}")
    return httpx.HTTPStatusError("no", request=response.request, response=response)


def content() -> RecordDict:
    arrays = to_record({"w": np.arange(5, dtype=np.float32)})
    return RecordDict({"arrays": arrays, "metrics": MetricRecord({"loss": 0.5})})


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    ensure_task_identity()
    link = Link()
    monkeypatch.setattr(FleetHttpClient, "from_server_address", lambda *a, **k: link)
    return link


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The shortest and longest pause of each fetch, while an object is under way."""
    seen = []

    def fetch(*args: Any, **options: Any) -> dict[str, bytes]:
        seen.append((options["initial_backoff"], options["backoff_cap"]))
        return pull_objects(*args, **options)

    monkeypatch.setattr(fleet, "pull_objects", fetch)
    monkeypatch.setattr(fast_grid, "pull_objects", fetch)
    return seen


def test_a_message_comes_and_its_reply_goes(
    link: Link, pauses: list[tuple[float, float]], tmp_path: Path
) -> None:
    sent = Message(content(), 77, MessageType.TRAIN)
    link.hold(sent)
    recall = Recall(tmp_path, 0)
    with FleetConnection(ACCESS, recall) as connection:
        message = connection.receive()
        owed = connection.owed()
        assert owed is not None and owed.metadata.message_id == sent.metadata.message_id
        assert connection.receive() is None
        assert message is not None and message.content.object_id == content().object_id
        assert message.metadata.message_id == sent.metadata.message_id
        connection.send(Message(content(), reply_to=message), 0.25)
        assert connection.owed() is None
    assert recall.node() is None  # it has said farewell
    assert pauses == [(0.005, 0.2)]  # Flower's own begin with a second
    (pushed,) = link.pushed
    told = message_from_proto(pushed.messages_list[0])
    assert told.metadata.reply_to_message_id == sent.metadata.message_id
    assert list(pushed.clientapp_runtime_list) == [0.25]
    number = told.metadata.message_id
    reply = inflate_object_from_contents(number, dict(link.objects))
    assert isinstance(reply, Message) and reply.content.object_id == content().object_id
    kept = [c for c in link.calls if c not in ("PullObject", "PushObject", "SendNodeHeartbeat")]
    assert kept == [
        "RegisterNode", "ActivateNode", "PullMessages", "ConfirmMessageReceived", "PullMessages",
        "PushMessages", "DeactivateNode", "UnregisterNode", "close",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "raised"), [(403, RunOverError), (502, LostError), (401, RejectedError)]
)
def test_refusals_are_told_apart(
    link: Link, status: int, raised: type[Exception], tmp_path: Path
) -> None:
    with FleetConnection(ACCESS, Recall(tmp_path, 0)) as connection:
        link.error = answered(status)
        with pytest.raises(raised) as caught:
            connection.receive()
    assert caught.type is raised


def test_a_process_that_was_killed_while_it_replied_is_not_taken_up(
    link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server has a part of the reply; the process itself could have sent it again."""
    link.hold(Message(content(), 77, MessageType.TRAIN))
    recall = Recall(tmp_path, 0)
    with FleetConnection(ACCESS, recall) as connection:
        message = connection.receive()
        assert message is not None
        reply = Message(content(), reply_to=message)
        with monkeypatch.context() as patch:
            patch.setattr(fleet, "push_objects", lambda *args, **kwargs: 1 / 0)
            with pytest.raises(LostError, match="ZeroDivisionError"):
                connection.send(reply, 0.0)
        assert recall.owed() and not recall.is_unsure()
        assert Recall(tmp_path, 0).is_unsure()
        connection.send(reply, 0.0)
        assert not recall.owed() and not Recall(tmp_path, 0).is_unsure()


def test_what_will_not_change_by_itself_is_told_apart(link: Link, tmp_path: Path) -> None:
    response = httpx.Response(401, request=httpx.Request("POST", "http://here"), text=UNKNOWN_KEY)
    link.error = httpx.HTTPStatusError("no", request=response.request, response=response)
    with pytest.raises(StrangersError, match="does not know this client's key"):
        FleetConnection(ACCESS, Recall(tmp_path, 0)).__enter__()
    link.error = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")
    with pytest.raises(StrangersError, match=r"certificate is not to be trusted: .*self-signed"):
        FleetConnection(ACCESS, Recall(tmp_path, 0)).__enter__()


def test_a_server_that_is_gone_is_lost(link: Link, tmp_path: Path) -> None:
    link.error = httpx.ConnectError("refused")
    with (
        pytest.raises(LostError, match="refused"),
        FleetConnection(ACCESS, Recall(tmp_path, 0)),
    ):
        raise AssertionError("never connected")


def test_a_connection_that_was_cut_short_goes_on_as_the_same_node(
    link: Link, tmp_path: Path
) -> None:
    sent = Message(content(), 77, MessageType.TRAIN)
    link.hold(sent)
    with pytest.raises(LostError), FleetConnection(ACCESS, Recall(tmp_path, 0)) as connection:
        connection.receive()
        raise LostError
    assert not {"DeactivateNode", "UnregisterNode"} & set(link.calls)
    link.calls.clear()
    with FleetConnection(ACCESS, Recall(tmp_path, 0)) as connection:
        assert link.calls == ["SendNodeHeartbeat"]  # and no second activation
        owed = connection.owed()
        assert owed is not None and owed.metadata.dst_node_id == 77
        connection.send(Message(Error(2, "no"), reply_to=owed), 0.0)
        assert connection.owed() is None
    (pushed,) = link.pushed
    told = message_from_proto(pushed.messages_list[0])
    assert told.metadata.reply_to_message_id == sent.metadata.message_id
    assert told.metadata.src_node_id == 77


@pytest.mark.parametrize("known", [False, None])
def test_a_server_that_does_not_know_the_node_gets_another(
    link: Link, tmp_path: Path, known: bool | None
) -> None:
    recall = Recall(tmp_path, 0)
    recall.keep_node(5)
    recall.owe(b"to a server that is gone")
    link.known = known
    with FleetConnection(ACCESS, recall) as connection:
        assert link.calls[:3] == ["SendNodeHeartbeat", "RegisterNode", "ActivateNode"]
        assert (recall.node(), connection.owed(), recall.owed()) == (77, None, None)


def grid_of(monkeypatch: pytest.MonkeyPatch, link: Link) -> HttpGrid:
    grid = HttpGrid("here:1", insecure=True, token="t")
    grid.set_run(empty_run(1))
    monkeypatch.setattr(HttpGrid, "_runtime_client", property(lambda self: link))
    return grid


def test_the_grid_fetches_at_once_and_packs(
    monkeypatch: pytest.MonkeyPatch, link: Link, pauses: list[tuple[float, float]]
) -> None:
    grid = grid_of(monkeypatch, link)
    pushed: list[Message] = []

    def push(_: HttpGrid, messages: list[Message]) -> list[str]:
        pushed.extend(messages)
        return ["m"]

    monkeypatch.setattr(HttpGrid, "push_messages", push)
    quick = fast(grid)
    assert isinstance(quick, FastGrid) and fast(quick) is quick

    asked = Message(content(), 77, MessageType.TRAIN)
    set_message_id(asked, "m")
    link.hold(Message(content(), reply_to=asked))
    (reply,) = quick.send_and_receive([asked], timeout=20.0)
    assert pauses == [(0.005, 0.2)]
    assert reply.content.object_id == content().object_id
    assert is_packed(pushed[0].content) and not is_packed(asked.content)
    assert not list(quick.send_and_receive([asked], timeout=0.1))


@pytest.mark.parametrize("there", [True, False])
def test_the_grid_waits_for_the_rest_of_a_reply_while_its_sender_is_there(
    monkeypatch: pytest.MonkeyPatch, link: Link, there: bool
) -> None:
    grid = grid_of(monkeypatch, link)
    monkeypatch.setattr(HttpGrid, "get_node_ids", lambda self: [5, 77] if there else [5])
    monkeypatch.setattr(fast_grid, "_ON_ITS_WAY", -1.0)
    asked = Message(content(), 77, MessageType.TRAIN)
    set_message_id(asked, "m")
    link.hold(Message(content(), reply_to=asked))
    assert len(list(fast(grid).pull_messages(["m"]))) == there


def test_flower_still_has_the_signatures() -> None:
    for name in (
        "RegisterNode", "ActivateNode", "DeactivateNode", "UnregisterNode", "SendNodeHeartbeat",
        "PullMessages", "PushMessages", "GetRun", "GetFab", "PushObject", "PullObject",
        "ConfirmMessageReceived",
    ):  # fmt: skip
        assert list(inspect.signature(getattr(FleetHttpClient, name)).parameters)[1:] == ["request"]
    made = inspect.signature(FleetHttpClient.from_server_address).parameters
    assert list(made)[:4] == ["server_address", "insecure", "root_certificates", "interceptors"]
    assert {"max_time", "initial_backoff", "backoff_cap"} <= inspect.signature(
        pull_objects
    ).parameters.keys()
    assert isinstance(inspect.getattr_static(HttpGrid, "_runtime_client"), property)
    assert heartbeat.INTERVAL == HEARTBEAT_MIN_INTERVAL and HEARTBEAT_PATIENCE == 2
    client = Access(address="127.0.0.1:1").client(generate_key_pairs())
    with pytest.raises(httpx.ConnectError):
        client.PullMessages(PullMessagesResponse())


@pytest.mark.parametrize("own_key", [False, True])
@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (httpx.ReadTimeout("30 s"), True),
        (httpx.ReadError("reset"), True),
        (httpx.ConnectError("no"), False),
    ],
)
def test_a_node_that_a_message_may_have_been_lost_on_its_way_to_is_given_up_first(
    link: Link, tmp_path: Path, error: Exception, lost: bool, own_key: bool
) -> None:
    """Told at once that it is gone, the server does not wait for a reply that will not come."""
    recall = Recall(tmp_path, 0)
    access = Access(address="here:1", keys=generate_key_pairs() if own_key else None)
    with pytest.raises(LostError), FleetConnection(access, recall) as connection:
        link.error = error
        connection.receive()
    assert recall.node() == 77 and recall.is_unsure() == lost
    link.error, link.calls = httpx.ConnectError("no"), []
    with pytest.raises(LostError, match="no"), FleetConnection(access, recall):
        raise AssertionError("there is no server")
    assert recall.node() == 77 and recall.is_unsure() == lost
    link.error, link.calls = None, []
    if lost:
        with pytest.raises(LostError, match="given up"), FleetConnection(access, recall):
            raise AssertionError("it pauses, so that the server sees that the node is gone")
        farewell = ["DeactivateNode", *["UnregisterNode"] * (not own_key)]
        assert link.calls == ["SendNodeHeartbeat", *farewell, "close"]
        assert recall.node() is None and not recall.is_unsure()
    with FleetConnection(access, recall):
        assert ("ActivateNode" in link.calls) == lost


@pytest.mark.parametrize("known", [False, None])
def test_another_server_does_not_wait_for_a_node_that_it_does_not_know(
    link: Link, tmp_path: Path, known: bool | None
) -> None:
    recall = Recall(tmp_path, 0)
    recall.keep_node(5)
    recall.ask()
    link.known = known
    with FleetConnection(ACCESS, recall):
        assert link.calls[-2:] == ["RegisterNode", "ActivateNode"]
        assert "DeactivateNode" not in link.calls
        assert recall.node() == 77 and not recall.is_unsure()


def test_a_node_with_a_key_that_could_not_be_noted_stays_away_until_it_is_missed(
    link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be taken for alive, and its message be waited for."""
    slept = list[float]()
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(Recall, "node", lambda self: None)
    access = Access(address="here:1", keys=generate_key_pairs())
    with pytest.raises(LostError), FleetConnection(access, Recall(tmp_path, 0)) as connection:
        link.error = httpx.ReadTimeout("30 s")
        connection.receive()
    assert len(slept) == 1 and slept[0] > heartbeat.GONE_AFTER


def test_a_sign_of_life_that_is_lost_is_soon_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = list[float]()
    came = iter([True, False, False, True])
    beats = heartbeat.Heartbeat(lambda: next(came))

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) > 4

    monkeypatch.setattr(beats._stopped, "wait", wait)
    beats._run()
    assert pauses == [4.0, 4.0, 0.5, 0.5, 4.0]
    assert max(pauses) < heartbeat.INTERVAL


def test_a_node_without_a_key_of_its_own_goes_on_with_the_one_that_it_made(
    link: Link, tmp_path: Path
) -> None:
    recall = Recall(tmp_path, 0)
    with pytest.raises(LostError), FleetConnection(ACCESS, recall) as connection:
        first = public_key_to_bytes(connection._keys[1])
        raise LostError("cut")
    with FleetConnection(ACCESS, Recall(tmp_path, 0)) as connection:
        assert public_key_to_bytes(connection._keys[1]) == first
    with FleetConnection(ACCESS, Recall(tmp_path, 0)) as connection:  # after a farewell
        assert public_key_to_bytes(connection._keys[1]) != first


@pytest.mark.parametrize("own_key", [False, True])
def test_a_process_that_was_killed_while_it_asked_is_not_taken_up(
    link: Link, tmp_path: Path, own_key: bool
) -> None:
    """Whether it had got a message nobody knows; so the server is told that it is gone."""
    recall = Recall(tmp_path, 0)
    access = Access(address="here:1", keys=generate_key_pairs() if own_key else None)
    recall.keep_node(5)
    recall.ask()
    with pytest.raises(LostError), FleetConnection(access, Recall(tmp_path, 0)):
        raise AssertionError("it pauses")
    assert "DeactivateNode" in link.calls and "ActivateNode" not in link.calls
    with FleetConnection(access, recall := Recall(tmp_path, 0)) as connection:
        assert "ActivateNode" in link.calls and not recall.is_unsure()
        link.hold(Message(content(), 77, MessageType.TRAIN))
        assert connection.receive() is not None
        assert recall.owed() and not recall.is_unsure()
        assert connection.receive() is None and not recall.is_unsure()
