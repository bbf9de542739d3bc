"""Commands in a network namespace that has loopback and nothing else.

What a command tries to send anywhere but to this machine fails there at once, so that a run which
ends well has needed nobody. `only_loopback(command)` is a command for `subprocess`; it keeps its
process id, so that signals reach it as ever.
"""

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

import pytest

_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1  # Linux: SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
_UNSHARE = ("unshare", "--map-root-user", "--net")


def only_loopback(command: Sequence[str]) -> list[str]:
    """The same command, for `subprocess`, without a network."""
    return [*_UNSHARE, sys.executable, __file__, *command]


def reason_against() -> str | None:
    """Why there can be no such namespace here, or `None`."""
    if sys.platform != "linux":
        return f"network namespaces are Linux's, this is {sys.platform}"
    if shutil.which(_UNSHARE[0]) is None:
        return "there is no unshare(1)"
    ran = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True, check=False)
    return ran.stderr.strip() or f"unshare ended with {ran.returncode}" if ran.returncode else None


def skip_if_impossible() -> None:
    """Skip the test that calls this where namespaces are not allowed."""
    if (reason := reason_against()) is not None:
        pytest.skip(f"no network namespace without privileges: {reason}")


def bring_loopback_up() -> None:
    """A new namespace's loopback is down; needs no ip(8)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, _GET_FLAGS, asked))[1]
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", flags | _UP))


if __name__ == "__main__":
    bring_loopback_up()
    os.execvp(sys.argv[1], sys.argv[1:])
