"""Networks of network namespaces on one machine: rooms for processes, and a switch between them.

A room holds processes with interfaces of their own. `lonely()` is one whose only way out leads
into nothing, where `witness` notes what is sent; `Network` joins several by cables. Needs no
privileges, where user namespaces are allowed.
"""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from lan_runs import Stage
from offline import reason_against
from witness import NOWHERE

_HOLD = ("sh", "-c", "echo; exec cat")  # says that it is there, and ends with its standard input
WAY_OUT = "out0"
_OWN, _GATEWAY, _GATEWAY_MAC = "198.51.100.2/24", "198.51.100.1", "02:00:00:00:00:01"


class Room:
    """A network namespace, as long as a process of ours or one that it was given stays in it."""

    def __init__(self, within: "Room | None" = None) -> None:
        """Open it; one `within` another belongs to the same owner, so that cables can join them."""
        owner = [] if within is None else within.inside(())
        unshare = ["unshare", *([] if within else ["--map-root-user"]), "--net"]
        self._holder = subprocess.Popen(
            [*owner, *unshare, *_HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        self._holder.stdout.read(1)
        self.pid = self._holder.pid
        try:
            self.ip("link set lo up")
        except AssertionError:
            self.close()
            raise

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command, for `subprocess`, in this room; it keeps its process id."""
        enter = ["nsenter", f"--target={self.pid}", "--user", "--preserve-credentials", "--net"]
        return [*enter, "--", *command]

    def run(self, *command: str) -> None:
        done = subprocess.run(self.inside(command), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"

    def ip(self, words: str) -> None:
        self.run("ip", *words.split())

    def close(self) -> None:
        self._holder.communicate()


class RoomStage(Stage):
    """A stage whose processes are in rooms."""

    room: Room

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        return super().start(name, *self.room.inside(command))


@contextmanager
def lonely() -> Iterator[Room]:
    """A room with a default route that leads into nothing."""
    room = Room()
    try:
        room.ip(f"link add {WAY_OUT} type veth peer name {NOWHERE}")
        room.ip(f"link set {NOWHERE} up")
        room.ip(f"address add {_OWN} dev {WAY_OUT}")
        room.ip(f"link set {WAY_OUT} up")
        room.ip(f"neighbour add {_GATEWAY} lladdr {_GATEWAY_MAC} dev {WAY_OUT}")
        room.ip(f"route add default via {_GATEWAY}")
        yield room
    finally:
        room.close()


class Network:
    """A switch, and rooms with a cable to it each, until it is closed."""

    def __init__(self, *addresses: str) -> None:
        """Build it.

        Args:
            addresses: of the rooms, all of 10.77.0.0/24.
        """
        self.rooms: list[Room] = []
        self._switch = Room()
        try:
            self._switch.ip("link add switch type bridge")
            self._switch.ip("link set switch up")
            for place, address in enumerate(addresses):
                self._join(place, address)
        except AssertionError:
            self.close()
            raise

    def _join(self, place: int, address: str) -> None:
        room = Room(within=self._switch)
        self.rooms.append(room)
        self._switch.ip(f"link add port{place} type veth peer name eth0 netns {room.pid}")
        self._switch.ip(f"link set port{place} up")
        self.mend(place)
        room.ip(f"address add {address}/24 dev eth0")
        room.ip("link set eth0 up")

    def cut(self, place: int) -> None:
        """Nothing passes any more, and nobody is told: the cables are in, the switch is deaf."""
        self._switch.ip(f"link set port{place} nomaster")

    def mend(self, place: int) -> None:
        """All passes again."""
        self._switch.ip(f"link set port{place} master switch")

    def close(self) -> None:
        for room in (*self.rooms, self._switch):
            room.close()


def reason_against_networks() -> str | None:
    """Why rooms cannot be made here, or not be joined; or `None`."""
    reason = reason_against()
    for program in ("nsenter", "ip"):
        if reason is None and shutil.which(program) is None:
            reason = f"there is no {program}"
    if reason is None:
        try:
            Network("10.77.0.1").close()
        except AssertionError as error:
            reason = " ".join(str(error).split())
    return reason


def skip_if_impossible() -> None:
    """Skip the test that calls this where there can be no such networks."""
    if (reason := reason_against_networks()) is not None:
        pytest.skip(f"no networks of namespaces here: {reason}")
