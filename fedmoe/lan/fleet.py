"""A client's connection to a SuperLink: the private half of Flower's SuperNode, in one file.

Flower's SuperNode asks for messages every 3 seconds and starts a new process for each. This is
the same protocol (Flower's Fleet API, protobuf over HTTP) from within the process that answers.
`tests/unit/lan/test_fleet.py` holds Flower to what is relied on here.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.config import get_fused_config_from_fab
from flwr.common.serde import fab_from_proto, message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedmoe.lan import UNKNOWN_KEY
from fedmoe.lan.access import KeyPair
from fedmoe.lan.heartbeat import GONE_AFTER, INTERVAL, Heartbeat
from fedmoe.lan.lost import LostError, RejectedError, RunOverError, StrangersError
from fedmoe.lan.recall import Recall
from fedmoe.messages.seams import ensure_task_identity, message_from_wire, set_message_id

_LOG = logging.getLogger("fedmoe.lan.fleet")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.2  # seconds until an object is asked for again
_NO_RUN = 403  # what a SuperLink answers about a run that is over
_NO_SUPERLINK = 502  # what the proxy before it answers while there is none
_LONG_ENOUGH = GONE_AFTER + 2.0  # seconds, for the server to see that a node is gone


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a server is reached.

    Attributes:
        address: HOST:PORT.
        root_certificates: a file of the certificates that the server's must come from; `None`
            for a plain connection.
        keys: what this node is known by; `None` makes a pair that lasts until its farewell, for
            servers that know no nodes.
    """

    address: str
    root_certificates: Path | None = None
    keys: KeyPair | None = None

    def client(self, keys: KeyPair) -> FleetHttpClient:
        """Flower's client; it connects when it is first used."""
        root = self.root_certificates
        return FleetHttpClient.from_server_address(
            self.address,
            root is None,
            None if root is None else root.read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(*keys),
            ],
        )


class FleetConnection:
    """One node's connection, from its activation to its farewell. A context manager.

    Every method raises `LostError` where the server is not to be reached or refuses this node,
    `StrangersError` where that will not change by itself, and `RunOverError` where it says that a
    message's run has ended.
    """

    def __init__(self, access: Access, recall: Recall) -> None:
        """Nothing is sent before the context is entered.

        Args:
            access: how the server is reached.
            recall: of the connection before, which goes on where that was cut short and the
                server still knows its node.
        """
        ensure_task_identity()
        self._recall = recall
        self._self_registered = access.keys is None
        self._keys = access.keys or recall.keys() or generate_key_pairs()
        self._client = access.client(self._keys)
        self._node = Node()
        self._heartbeat = Heartbeat(self._beat)

    def __enter__(self) -> Self:
        try:
            self._node = Node(node_id=self._activated())
        except BaseException:
            self._client.close()
            raise
        self._heartbeat.start()
        return self

    def _activated(self) -> int:
        """Flower's id for this node."""
        public_key = public_key_to_bytes(self._keys[1])
        with _translated():
            if self._recall.is_unsure():
                self._give_up()
            if (before := self._still_known()) is not None:
                return before
            if self._self_registered:
                self._client.RegisterNode(RegisterNodeFleetRequest(public_key=public_key))
            told = self._client.ActivateNode(
                ActivateNodeRequest(public_key=public_key, heartbeat_interval=INTERVAL)
            )
        node = int(told.node_id)
        self._recall.keep_node(node, self._keys if self._self_registered else None)
        return node

    def _still_known(self) -> int | None:
        """The node of the connection before; it cannot be activated while it counts as alive."""
        node = self._recall.node()
        if node is None:
            return None
        try:
            told = self._client.SendNodeHeartbeat(_sign_of_life(Node(node_id=node)))
        except httpx.HTTPStatusError:  # another server, or a new life of this one
            return None
        return node if told.success else None

    def _give_up(self) -> None:
        """Say farewell for the connection before, if what it got or sent may have been cut off.

        The server need not wait for that then. It is told now and not when the connection was
        lost, since nobody was there to hear it, and sees it before this client tries again; a
        server that does not know the node waits for nothing.
        """
        node = self._still_known()
        if node is not None:
            self._say_farewell(node)
        self._recall.forget()
        if node is not None:
            raise LostError("a message may have been lost, and so its node was given up")

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Say farewell, unless this connection is to be taken up again."""
        self._heartbeat.stop()
        node, lost = self._node.node_id, kind is not None and issubclass(kind, LostError)
        noted = self._recall.node() == node
        try:
            if not (lost and noted) or self._recall.is_unsure():
                self._say_farewell(node)
                self._recall.forget()
        except (httpx.HTTPError, RuntimeError):
            if lost and not noted:
                self._recall.forget()
                if not self._self_registered:
                    self._stay_away()
        finally:
            self._client.close()

    def _say_farewell(self, node: int) -> None:
        self._client.DeactivateNode(DeactivateNodeRequest(node_id=node))
        if self._self_registered:
            self._client.UnregisterNode(UnregisterNodeFleetRequest(node_id=node))

    def receive(self) -> Message | None:
        """The next message with its content, or `None` if there is none."""
        with _translated(), no_object_id_recompute():
            pulled = self._pulled()
            if not pulled.messages_list:
                self._recall.heard()
                return None
            run_id = message_from_proto(pulled.messages_list[0]).metadata.run_id
            number = pulled.messages_list[0].metadata.message_id
            self._recall.owe(pulled.messages_list[0].SerializeToString())
            self._recall.heard()
            contents = pull_objects(
                [tree.object_id for tree in iterate_object_tree(pulled.message_object_trees[0])],
                make_pull_object_fn_protobuf(self._client.PullObject, self._node, run_id),
                initial_backoff=_FIRST_PAUSE,
                backoff_cap=_LONGEST_PAUSE,
            )
            confirm = self._client.ConfirmMessageReceived
            make_confirm_message_received_fn_protobuf(confirm, self._node, run_id)(number)
            message = cast(Message, inflate_object_from_contents(number, contents))
        set_message_id(message, number)
        return message

    def _pulled(self) -> PullMessagesResponse:
        """A message is handed out once and for all: a node that may have lost one is given up."""
        self._recall.ask()
        try:
            return self._client.PullMessages(PullMessagesRequest(node=self._node))
        except (httpx.ConnectError, httpx.HTTPStatusError):
            self._recall.heard()
            raise

    def _stay_away(self) -> None:
        """Let the server miss this node: alive again too soon, it would be waited for on and on.

        For when the disk has no room for a note on which node it was.
        """
        _LOG.info("staying away for %g s: a message may have been lost", _LONG_ENOUGH)
        time.sleep(_LONG_ENOUGH)

    def send(self, reply: Message, seconds: float) -> None:
        """Send a reply.

        Args:
            reply: whose records Flower can serialise.
            seconds: that it took to make, for the server's accounts.
        """
        with _translated(), no_object_id_recompute():
            set_message_id(reply, reply.object_id)
            objects, run_id = get_all_nested_objects(reply), reply.metadata.run_id
            self._recall.reply()
            told = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[seconds],
                )
            )
            push = make_push_object_fn_protobuf(
                self._client.PushObject, self._node, run_id, told.session_id
            )
            push_objects(objects, push, object_ids_to_push=set(told.objects_to_push))
        self._recall.paid()

    def owed(self) -> Message | None:
        """The message, without its content, that the connection before left without a reply."""
        told = self._recall.owed()
        return None if told is None else message_from_wire(told)

    def waive(self) -> None:
        """Owe nothing any more."""
        self._recall.paid()

    def run_config(self, run_id: int) -> Mapping[str, Any]:
        """The configuration of a run: of its app, with what `flwr run` was told."""
        with _translated():
            request = GetRunRequest(node=self._node, run_id=run_id)
            run = run_from_proto(self._client.GetRun(request).run)
            wanted = GetFabRequest(node=self._node, hash_str=run.fab_hash, run_id=run_id)
            fab = fab_from_proto(self._client.GetFab(wanted).fab)
        return get_fused_config_from_fab(fab.content, run)

    def _beat(self) -> bool:
        try:
            self._client.SendNodeHeartbeat(_sign_of_life(self._node))
        except (httpx.HTTPError, RuntimeError):
            return False  # the main thread finds out by itself
        return True


def _sign_of_life(node: Node) -> SendNodeHeartbeatRequest:
    return SendNodeHeartbeatRequest(node=node, heartbeat_interval=INTERVAL)


@contextmanager
def _translated() -> Iterator[None]:
    """Flower's errors as ours."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        if error.response.text == UNKNOWN_KEY:
            raise StrangersError("it does not know this client's key") from error
        told = FlowerError.from_json(error.response.text)
        words = str(error) if told is None else f"[{told.code}] {told.message}"
        if error.response.status_code == _NO_RUN:
            raise RunOverError(words) from error
        if error.response.status_code == _NO_SUPERLINK:
            raise LostError(words) from error
        raise RejectedError(words) from error
    except httpx.ConnectError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise StrangersError(f"its certificate is not to be trusted: {error}") from error
        raise LostError(f"{type(error).__name__}: {error}") from error
    except LostError:
        raise
    except Exception as error:  # whatever the network brings, this client goes on
        raise LostError(f"{type(error).__name__}: {error}") from error
