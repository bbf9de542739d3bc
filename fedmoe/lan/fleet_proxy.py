"""What clients reach of a server: Flower's Fleet API, and nothing else.

Flower 1.41 serves three interfaces on one port. Clients need the Fleet API; who reaches the Control
API can start runs, and a run is code. So the SuperLink listens on loopback alone, and this passes
on what clients may say: of known clients only, where they have keys, and no more of it than a reply
may weigh. The SuperLink itself would read and store whatever comes.
"""

import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from fedmoe.errors import RunError
from fedmoe.lan import UNKNOWN_KEY
from fedmoe.lan.access import ServerKeys

_LOG = logging.getLogger("fedmoe.lan.FleetProxy")
_FLEET = re.compile(r"/v1/fleet/[a-z-]+")
_NEW_REPLY, _PART = "/v1/fleet/push-messages", "/v1/fleet/push-object"
_PUBLIC_KEY = b"flwr-public-key"
# Of one connection, and thus not to be passed on; lengths and encodings are made anew.
_OWN = {
    b"host", b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade",
    b"transfer-encoding", b"content-length", b"accept-encoding",
}  # fmt: skip
_SLACK = 1_000_000  # bytes of a message besides its contents
_STRANGERS = 100  # that are told of
# A SuperLink closes connections that are idle for 5 s; who lets go first cannot be cut off.
_UPSTREAM_IDLE, _CLIENT_IDLE = 2.0, 60
_SECONDS = 60.0
_START_SECONDS = 10.0

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]


class FleetProxy:
    """An ASGI application in front of a SuperLink."""

    def __init__(
        self, superlink: httpx.AsyncClient, max_bytes: int, known: Collection[bytes] | None
    ) -> None:
        """Pass on to `superlink`.

        Args:
            superlink: with the SuperLink's address; closed at the end of the application's life.
            max_bytes: that one reply may weigh, all its parts together.
            known: the clients' public keys as they are sent; `None` lets anybody in.
        """
        self._superlink, self._most, self._known = superlink, max_bytes + _SLACK, known
        self._sent: dict[bytes, int] = {}  # bytes of the present reply, by public key
        self._strangers: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self._superlink.aclose()
            await send({"type": "lifespan.shutdown.complete"})
            return
        status, headers, body = await self._answer(scope, receive)
        headers = [*headers, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        path: str = scope["path"]
        if scope["method"] != "POST" or not _FLEET.fullmatch(path):
            return _no(404, "not for clients")
        keys = [value for name, value in scope["headers"] if name == _PUBLIC_KEY]
        key = keys[0] if len(keys) == 1 else b""
        if self._known is not None and key not in self._known:
            self._tell_of(str((scope.get("client") or ("?",))[0]))
            return _no(401, UNKNOWN_KEY)
        room = self._room(path, key)
        announced: bytes = dict(scope["headers"]).get(b"content-length", b"0")
        body = await _read(receive, room, announced)
        if body is None:
            return _no(413, f"more than {self._most} bytes (runtime.max_reply_bytes)")
        if path == _PART:
            self._sent[key] = self._sent.get(key, 0) + len(body)
        passed = [(name, value) for name, value in scope["headers"] if name not in _OWN]
        passed.append((b"accept-encoding", b"identity"))
        try:
            answer = await self._superlink.post(path, content=body, headers=passed)
        except httpx.HTTPError as error:
            return _no(502, f"no SuperLink: {type(error).__name__}")
        headers = [(n.lower(), v) for n, v in answer.headers.raw if n.lower() not in _OWN]
        return answer.status_code, headers, answer.content

    def _room(self, path: str, key: bytes) -> int:
        """How many bytes may come: a reply is announced, and its parts follow one by one."""
        if path == _NEW_REPLY:
            self._sent.pop(key, None)
        return self._most - (self._sent.get(key, 0) if path == _PART else 0)

    def _tell_of(self, address: str) -> None:
        if address not in self._strangers and len(self._strangers) < _STRANGERS:
            self._strangers.add(address)
            _LOG.warning("refused: a client at %s, whose key is not in runtime.keys", address)


async def _read(receive: Receive, most: int, announced: bytes) -> bytes | None:
    """A request's body; `None` as soon as it is known to be too long."""
    if not announced.isdigit() or int(announced) > most:
        return None
    body = bytearray()
    while True:
        event = await receive()
        body += event.get("body", b"")
        if len(body) > most:
            return None
        if not event.get("more_body", False):
            return bytes(body)


def _no(status: int, words: str) -> Answer:
    return status, [(b"content-type", b"text/plain")], words.encode()


def listener(host: str, port: int) -> socket.socket:
    """A port that is taken, and that nothing is accepted at as yet.

    Raises:
        RunError: another process has it, or this machine has no such address.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise RunError(f"runtime.host={host}: {error.strerror or error}") from error
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise RunError(
            f"runtime.port={port}: cannot listen at {host}:{port}: {error.strerror or error}"
        ) from error
    return taken


@contextmanager
def fleet_proxy(
    door: socket.socket, superlink: str, max_bytes: int, keys: ServerKeys | None
) -> Iterator[None]:
    """Let clients in while the context lasts, in a thread.

    Args:
        door: where; closed at the end.
        superlink: HOST:PORT of the SuperLink, on loopback.
        max_bytes: that one reply may weigh.
        keys: of a server with TLS; the SuperLink has the same.

    Raises:
        RunError: it does not start.
    """
    app = FleetProxy(_client(superlink, keys), max_bytes, None if keys is None else keys.known())
    server = uvicorn.Server(_config(app, keys))
    thread = threading.Thread(target=server.run, args=([door],), daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RunError(f"cannot listen for clients at {door.getsockname()[:2]}")
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join(_START_SECONDS)
        door.close()


def _client(superlink: str, keys: ServerKeys | None) -> httpx.AsyncClient:
    limits = httpx.Limits(keepalive_expiry=_UPSTREAM_IDLE)
    if keys is None:
        return httpx.AsyncClient(
            base_url=f"http://{superlink}", timeout=_SECONDS, limits=limits, trust_env=False
        )
    trusted = ssl.create_default_context(cafile=str(keys.root_certificates))
    return httpx.AsyncClient(
        base_url=f"https://{superlink}", timeout=_SECONDS, limits=limits, trust_env=False,
        verify=trusted,
    )  # fmt: skip


def _config(app: FleetProxy, keys: ServerKeys | None) -> uvicorn.Config:
    return uvicorn.Config(
        # At the end it calls it an error that clients are still connected.
        app, log_level="critical",
        lifespan="on", ws="none", log_config=None, access_log=False, proxy_headers=False,
        server_header=False, date_header=False, timeout_keep_alive=_CLIENT_IDLE,
        timeout_graceful_shutdown=1,
        ssl_certfile=None if keys is None else keys.certificate,
        ssl_keyfile=None if keys is None else keys.key,
    )  # fmt: skip
