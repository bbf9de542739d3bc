"""What passes from clients to a SuperLink, and what does not."""

import asyncio
import socket
import ssl
from base64 import b64encode
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedmoe.errors import ConfigError, RunError
from fedmoe.keys import make_keys
from fedmoe.lan import UNKNOWN_KEY
from fedmoe.lan.access import ServerKeys, client_keys
from fedmoe.lan.fleet_proxy import FleetProxy, fleet_proxy, listener
from fedmoe.lan.superlink import free_port
from fedmoe.schema.client import SeatConfig

PULL, ANNOUNCE, PART = (
    f"/v1/fleet/{name}" for name in ("pull-messages", "push-messages", "push-object")
)
MOST = 1_000_100  # bytes that pass where a reply may weigh 100
KEY = {FLEET_HTTP_PUBLIC_KEY_HEADER: "a2V5"}


class SuperLink:
    """Notes what reaches it."""

    def __init__(self) -> None:
        self.asked: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if b"gone" in request.content:
            raise httpx.ConnectError("refused")
        headers = {"content-type": "application/x", "transfer-encoding": "chunked", "x-own": "1"}
        return httpx.Response(418, headers=headers, content=b"reply")


def send(
    link: SuperLink, *requests: tuple[str, str, bytes], known: set[bytes] | None = None,
    headers: dict[str, str] | list[tuple[str, str]] = KEY,
) -> list[httpx.Response]:  # fmt: skip
    async def all_of_them() -> list[httpx.Response]:
        upstream = httpx.AsyncClient(base_url="http://link", transport=httpx.MockTransport(link))
        transport = httpx.ASGITransport(FleetProxy(upstream, 100, known))
        async with httpx.AsyncClient(base_url="http://door", transport=transport) as client:
            return [
                await client.request(method, path, content=body, headers=headers)
                for method, path, body in requests
            ]

    return asyncio.run(all_of_them())


def test_what_a_client_says_passes_as_it_is() -> None:
    link = SuperLink()
    (answer,) = send(link, ("POST", PULL, b"\x00body"), headers={**KEY, "x-signed": "yes"})
    (asked,) = link.asked
    assert (str(asked.url), asked.content) == ("http://link" + PULL, b"\x00body")
    assert asked.headers["x-signed"] == "yes" and asked.headers["host"] == "link"
    assert asked.headers[FLEET_HTTP_PUBLIC_KEY_HEADER] == "a2V5"
    assert (answer.status_code, answer.content) == (418, b"reply")
    assert answer.headers["x-own"] == "1" and "transfer-encoding" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/runtime/pull-task"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/pull-messages/../../control/start-run"),
        ("POST", "/v1/fleet/"),
        ("POST", "//v1/fleet/pull-messages"),
        ("GET", "/v1/fleet/pull-messages"),
        ("GET", "/health"),
        ("GET", "/openapi.json"),
    ],
)
def test_all_else_does_not(method: str, path: str) -> None:
    link = SuperLink()
    assert asyncio.run(spoken(link, path, method=method)) == (404, 0)
    assert not link.asked


async def spoken(
    link: SuperLink, path: str, announced: bytes | None = None, method: str = "POST"
) -> tuple[int, int]:
    """The status of a request whose body has no end, and how many pieces of it were read.

    A client's library would tidy the path up.
    """
    upstream = httpx.AsyncClient(base_url="http://link", transport=httpx.MockTransport(link))
    taken, said = 0, list[int]()

    async def receive() -> dict[str, object]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 500_000, "more_body": True}

    async def note(event: MutableMapping[str, Any]) -> None:
        said.append(int(event.get("status", 0)))

    headers = [] if announced is None else [(b"content-length", announced)]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    await FleetProxy(upstream, 100, None)(scope, receive, note)
    return said[0], taken


def test_strangers_are_refused_unread(caplog: pytest.LogCaptureFixture) -> None:
    link = SuperLink()
    for _ in range(2):
        (answer,) = send(link, ("POST", PULL, b"x" * 2 * MOST), known={b"b3RoZXI="})
        assert (answer.status_code, answer.text) == (401, UNKNOWN_KEY)
    (answer,) = send(link, ("POST", PULL, b""), known={b"a2V5"}, headers={})
    assert answer.status_code == 401
    for two in (("b3RoZXI=", "a2V5"), ("a2V5", "b3RoZXI=")):
        twice = [(FLEET_HTTP_PUBLIC_KEY_HEADER, key) for key in two]
        (answer,) = send(link, ("POST", PULL, b""), known={b"a2V5"}, headers=twice)
        assert answer.status_code == 401  # the SuperLink might take the other one
    assert not link.asked
    assert "refused: a client at 127.0.0.1, whose key is not in runtime.keys" in caplog.text
    (answer,) = send(link, ("POST", PULL, b""), known={b"a2V5"})
    assert answer.status_code == 418


def test_a_stranger_who_tries_on_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    send(SuperLink(), *[("POST", PULL, b"")] * 3, known=set())
    assert caplog.text.count("refused: a client") == 1


def test_no_more_is_read_than_a_reply_may_weigh() -> None:
    link = SuperLink()
    fits, too_long = send(link, ("POST", PULL, b"x" * MOST), ("POST", PULL, b"x" * (MOST + 1)))
    assert (fits.status_code, too_long.status_code) == (418, 413)
    assert "runtime.max_reply_bytes" in too_long.text
    assert len(link.asked) == 1


def test_a_length_that_is_not_announced_or_a_lie_is_cut_off_too() -> None:
    link = SuperLink()
    assert asyncio.run(spoken(link, PULL)) == (413, 3)
    assert asyncio.run(spoken(link, PULL, b"7")) == (413, 3)
    assert asyncio.run(spoken(link, PULL, b"9999999999")) == (413, 0)
    assert asyncio.run(spoken(link, PULL, b"-1")) == (413, 0)
    assert not link.asked


def test_parts_of_a_reply_count_together() -> None:
    link, half = SuperLink(), b"x" * (MOST // 2)
    told = send(
        link, ("POST", ANNOUNCE, b""), ("POST", PART, half), ("POST", PART, half),
        ("POST", PART, b"x"), ("POST", PULL, half), ("POST", ANNOUNCE, b""), ("POST", PART, half),
    )  # fmt: skip
    assert [answer.status_code for answer in told] == [418, 418, 418, 413, 418, 418, 418]


def test_a_superlink_that_is_gone_is_said_to_be() -> None:
    (answer,) = send(SuperLink(), ("POST", PULL, b"gone"))
    assert (answer.status_code, answer.text) == (502, "no SuperLink: ConnectError")


def test_known_keys_are_what_flower_sends(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", clients=2)
    keys = ServerKeys.of(str(tmp_path / "keys"))
    assert list(keys.clients) == [0, 1]
    sent = set()
    for number in keys.clients:
        own = client_keys(seat(tmp_path / "keys", number))
        assert own is not None
        sent.add(b64encode(public_key_to_bytes(own.pair()[1])))
    assert keys.known() == sent
    (tmp_path / "keys" / "client-1.pub").write_text("ssh-nothing")
    with pytest.raises(ConfigError, match=r"client-1\.pub"):
        keys.known()


def test_a_client_without_a_number_has_that_of_its_only_key(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", clients=2)
    with pytest.raises(ConfigError, match=r"or say client\.partition; there: client-0, client-1"):
        client_keys(seat(tmp_path / "keys", None))
    (tmp_path / "keys" / "client-0").unlink()
    own = client_keys(seat(tmp_path / "keys", None))
    assert own is not None and own.private_key.name == "client-1"


def seat(folder: Path, number: int | None) -> SeatConfig:
    return SeatConfig(
        partition=number, keys=str(folder), data=None, mode="inprocess", state="s", wait=1.0,
        stay=False,
    )  # fmt: skip


def test_it_listens_with_the_servers_certificate(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", clients=1)
    keys = ServerKeys.of(str(tmp_path / "keys"))
    (known,) = keys.known()
    with listener("127.0.0.1", free_port()) as door:
        port = door.getsockname()[1]
        with fleet_proxy(door, f"127.0.0.1:{free_port()}", 100, keys):
            trusting = ssl.create_default_context(cafile=str(keys.root_certificates))
            with httpx.Client(base_url=f"https://localhost:{port}", verify=trusting) as client:
                own = {FLEET_HTTP_PUBLIC_KEY_HEADER: known.decode()}
                assert client.post(PULL, headers=own).status_code == 502
                assert client.post(PULL, headers=KEY).status_code == 401
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                httpx.post(f"https://localhost:{port}{PULL}")
            with pytest.raises(httpx.TransportError):
                httpx.post(f"http://localhost:{port}{PULL}")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1.0)


@pytest.mark.parametrize(
    ("host", "said"),
    [("127.0.0.1", "cannot listen at 127.0.0.1:"), ("no.such.host.invalid", "runtime.host=no")],
)
def test_where_nothing_can_be_listened_at_is_one_line(host: str, said: str) -> None:
    with listener("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(RunError, match=said):
            listener(host, taken.getsockname()[1])
