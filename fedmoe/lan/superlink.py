"""Flower's SuperLink as a child of this process, driven by Flower's public commands."""

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from fedmoe.errors import RunError
from fedmoe.lan.access import ServerKeys
from fedmoe.lan.bundle import CONNECTION, write_bundle, write_connection
from fedmoe.lan.flower_commands import FlowerCommands
from fedmoe.lan.processes import Family
from fedmoe.schema import ExperimentConfig

_READY_SECONDS = 60.0
_STEP = 0.1
_HOST = "127.0.0.1"  # it serves more than what clients may have: see fleet_proxy
# Flower's colours, for a line that is quoted.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def superlink_arguments(port: int, keys: ServerKeys | None) -> list[str]:
    """What `flower-superlink` is told: where to listen on this machine, and how to be secure."""
    where = ["--host", _HOST, "--port", str(port)]
    if keys is None:
        return [*where, "--insecure"]
    return [
        *where, "--ssl-ca-certfile", str(keys.root_certificates), "--ssl-certfile",
        str(keys.certificate), "--ssl-keyfile", str(keys.key), "--enable-supernode-auth",
    ]  # fmt: skip


class SuperLink:
    """A SuperLink with one run, on loopback.

    Attributes:
        address: HOST:PORT.
        run_id: Flower's number of the run; `None` before it is submitted.
    """

    def __init__(
        self, port: int | None, keys: ServerKeys | None, family: Family, home: Path, log: Path
    ) -> None:
        """Start nothing yet.

        Args:
            port: where it listens; any that is free where none is given.
            keys: of a server with TLS.
            family: the processes to start it among, whose `FLWR_HOME` is `home`.
            home: a folder of its own.
            log: what its output is appended to.
        """
        self._port, self._keys = free_port() if port is None else port, keys
        self._family, self._home, self._log = family, home, log
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"{_HOST}:{self._port}"
        self.run_id: str | None = None

    def start(self) -> dict[str, int]:
        """Start it, wait until it listens, and make the clients' keys known to it.

        Returns:
            Clients by Flower's node, where they have keys.

        Raises:
            RunError: it ended, or did not listen in time; with its last line.
        """
        self._refuse_taken_port()
        keys = self._keys
        write_connection(self._home, self.address, None if keys is None else keys.root_certificates)
        self._process = self._family.start(
            [program("flower-superlink"), *superlink_arguments(self._port, keys)]
        )
        self._flwr = FlowerCommands(self._family)
        deadline = time.monotonic() + _READY_SECONDS
        while not self._listens():
            self.check()
            if time.monotonic() > deadline:
                raise RunError(f"the SuperLink did not listen at {self.address}; see {self._log}")
            time.sleep(_STEP)
        if keys is None:
            return {}
        return {
            str(self._flwr("supernode", "register", str(key), CONNECTION)["node-id"]): client
            for client, key in keys.clients.items()
        }

    def check(self) -> None:
        """See that it still runs.

        Raises:
            RunError: it has ended.
        """
        if self._process is not None and (code := self._process.poll()) is not None:
            raise RunError(f"the SuperLink ended with {code}: {self._last_line()}; see {self._log}")

    def submit(self, config: ExperimentConfig, federation: str) -> None:
        """Submit the app with an experiment.

        Raises:
            RunError: it was refused.
        """
        write_bundle(self._home / "bundle", config, federation)
        told = self._flwr("run", str(self._home / "bundle"), CONNECTION)
        self.run_id = str(told["run-id"])

    def status(self) -> tuple[str, str]:
        """Flower's word on the run: `running`, `finished:completed`, ..., and details.

        Raises:
            RunError: there is no answer.
        """
        told = self._flwr("list", CONNECTION, "--run-id", str(self.run_id))
        for run in told["runs"]:
            if str(run["run-id"]) == self.run_id:
                return str(run["status"]), str(run.get("status-details") or "")
        raise RunError(f"the SuperLink knows no run {self.run_id}")

    def _listens(self) -> bool:
        """Whether anything takes connections at its port, whatever their security."""
        try:
            with socket.create_connection((_HOST, self._port), timeout=1.0):
                return True
        except OSError:
            return False

    def _refuse_taken_port(self) -> None:
        if self._listens():
            raise RunError(
                f"runtime.control_port={self._port}: something listens at {self.address} already"
            )

    def _last_line(self) -> str:
        lines = [_COLOUR.sub("", line).strip() for line in self._log.read_text().splitlines()]
        return next((line for line in reversed(lines) if line), "it said nothing")


def free_port() -> int:
    """A port of loopback that nothing listens at."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def program(name: str) -> str:
    """One of Flower's commands, of the environment that this Python belongs to."""
    here = Path(sys.executable).with_name(name)
    return str(here) if here.exists() else name
