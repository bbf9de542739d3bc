"""What a client process keeps of its connection, for the process that takes its place.

A SuperLink hands each message out once, and takes a node for alive for some time after its last
sign of life. A client that was killed at work would be waited for as long, and refused meanwhile.
So it notes its node, and the message that it owes a reply; whoever comes next goes on as that
node and says that there will be none.
"""

import contextlib
import fcntl
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fedmoe.lan.access import KeyPair
from fedmoe.tracking.files import write_atomic


class Recall:
    """Small files of one client. What cannot be written or read is as if it were not there."""

    def __init__(self, root: Path, client: int | None) -> None:
        """Nothing is written yet.

        Args:
            root: the client process's folder, which exists.
            client: its number; `None` for the only one below `root`.
        """
        name = "client" if client is None else f"client-{client}"
        self._node, self._owed = root / f"{name}.node", root / f"{name}.owed"
        self._asked = root / f"{name}.asked"
        self._lock_path = root / f"{name}.lock"
        self._lock: int | None = None  # a file's descriptor
        self._asking = self._replying = False

    def claim(self) -> bool:
        """Whether no other process works as this client; none can before `release`, or its end."""
        try:
            self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        except OSError:  # a disk that is full, or one that knows no locks
            return True
        return True

    def release(self) -> None:
        """Let others claim it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def node(self) -> int | None:
        """Flower's id of the node that was connected last."""
        try:
            return int(self._node.read_bytes().partition(b"\n")[0])
        except (OSError, ValueError):
            return None

    def keys(self) -> KeyPair | None:
        """Those that this node made for itself; `None` if it made none."""
        with contextlib.suppress(OSError, ValueError):
            key = load_pem_private_key(self._node.read_bytes().partition(b"\n")[2], None)
            if isinstance(key, ec.EllipticCurvePrivateKey):
                return key, key.public_key()
        return None

    def keep_node(self, node: int, keys: KeyPair | None = None) -> None:
        """This node is connected, and owes nothing.

        Args:
            node: Flower's id.
            keys: where it made them for itself: nobody else can go on as this node.
        """
        self.paid()
        pem = b""
        if keys is not None:
            pem = keys[0].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _write(self._node, b"%d\n%s" % (node, pem))

    def forget(self) -> None:
        """The node is gone for good."""
        self.paid()
        self.heard()
        self._node.unlink(missing_ok=True)

    def ask(self) -> None:
        """A message is asked for: until `heard`, nobody knows whether one has been handed out."""
        self._asking = True  # also where the disk is full
        self._mark()

    def heard(self) -> None:
        """There was none, or it is owed a reply."""
        self._asking = False
        self._unmark()

    def reply(self) -> None:
        """A reply is under way: who is killed until it is `paid` may have sent a part of it."""
        self._replying = True
        self._mark()

    def _mark(self) -> None:
        with contextlib.suppress(OSError):
            self._asked.touch(0o600)

    def _unmark(self) -> None:
        with contextlib.suppress(OSError):
            self._asked.unlink(missing_ok=True)

    def is_unsure(self) -> bool:
        """Whether the server may wait for what will not come: a reply, or the rest of one.

        A process that knows what it was about to send can send it again.
        """
        return self._asking or (self._asked.exists() and not self._replying)

    def owe(self, message: bytes) -> None:
        """A message has come, which is to be replied to."""
        _write(self._owed, message)

    def paid(self) -> None:
        """It has been, or nobody waits for it any more; this needs no room on the disk."""
        self._owed.unlink(missing_ok=True)
        if self._replying:
            self._replying = False
            self._unmark()

    def owed(self) -> bytes | None:
        """The message without a reply, if there is one."""
        try:
            return self._owed.read_bytes() or None
        except OSError:
            return None


def _write(path: Path, content: bytes) -> None:
    """A full disk ends no client; and a message need not outlive the machine."""
    with contextlib.suppress(OSError):
        write_atomic(path, content, private=True, durable=False)
