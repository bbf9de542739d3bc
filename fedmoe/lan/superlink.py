"""Flower's SuperLink as a child of this process, driven by Flower's public commands."""

import json
import logging
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fedmoe.errors import RunError
from fedmoe.lan.access import ServerKeys
from fedmoe.lan.bundle import CONNECTION, write_bundle, write_connection
from fedmoe.lan.processes import Family
from fedmoe.schema import ExperimentConfig, LanConfig

_LOG = logging.getLogger("fedmoe.lan.SuperLink")
_READY_SECONDS = 60.0
_COMMAND_SECONDS = 60.0
_STEP = 0.1
# Flower's colours, for a line that is quoted.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def superlink_arguments(config: LanConfig) -> list[str]:
    """What `flower-superlink` is told: where to listen, and how to be secure."""
    where = ["--host", config.host, "--port", str(config.port)]
    if config.keys is None:
        return [*where, "--insecure"]
    keys = ServerKeys.of(config.keys)
    return [
        *where, "--ssl-ca-certfile", str(keys.root_certificates), "--ssl-certfile",
        str(keys.certificate), "--ssl-keyfile", str(keys.key), "--enable-supernode-auth",
    ]  # fmt: skip


class SuperLink:
    """A SuperLink with one run."""

    def __init__(self, config: LanConfig, family: Family, home: Path, log: Path) -> None:
        """Start nothing yet.

        Args:
            config: where it listens.
            family: the processes to start it among, whose `FLWR_HOME` is `home`.
            home: a folder of its own.
            log: what its output is appended to.
        """
        self._config, self._family, self._home, self._log = config, family, home, log
        self._process: subprocess.Popen[bytes] | None = None
        self.run_id: str | None = None

    @property
    def address(self) -> str:
        """HOST:PORT, as this machine reaches it."""
        anywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
        host = self._config.host
        shown = f"[{host}]" if ":" in host else host
        return f"{anywhere.get(host, shown)}:{self._config.port}"

    def start(self) -> None:
        """Start it, and wait until it listens.

        Raises:
            RunError: it ended, or did not listen in time; with its last line.
        """
        self._refuse_taken_port()
        keys = None if self._config.keys is None else ServerKeys.of(self._config.keys)
        write_connection(self._home, self.address, None if keys is None else keys.root_certificates)
        self._process = self._family.start(
            [program("flower-superlink"), *superlink_arguments(self._config)]
        )
        deadline = time.monotonic() + _READY_SECONDS
        while not self._listens():
            self.check()
            if time.monotonic() > deadline:
                raise RunError(f"the SuperLink did not listen at {self.address}; see {self._log}")
            time.sleep(_STEP)
        for public_key in () if keys is None else keys.clients:
            self._flwr("supernode", "register", str(public_key), CONNECTION)

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

    def _flwr(self, command: str, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [program("flwr"), command, *arguments, "--format", "json"],
            env=self._family.environment, capture_output=True, text=True,
            timeout=_COMMAND_SECONDS, check=False,
        )  # fmt: skip
        try:
            told = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError as error:
            words = " ".join((done.stderr or done.stdout).split())[-300:]
            raise RunError(f"flwr {command} failed: {words}") from error
        if not told.get("success"):
            raise RunError(f"flwr {command} failed: {told.get('error-message', told)}")
        return dict(told)

    def _listens(self) -> bool:
        """Ask for its health; any answer over the port will do, whatever its security."""
        host, _, port = self.address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=1.0):
                return True
        except OSError:
            return False

    def _refuse_taken_port(self) -> None:
        if self._listens():
            raise RunError(
                f"runtime.port={self._config.port}: something listens at {self.address} already"
            )

    def _last_line(self) -> str:
        lines = [_COLOUR.sub("", line).strip() for line in self._log.read_text().splitlines()]
        return next((line for line in reversed(lines) if line), "it said nothing")


def program(name: str) -> str:
    """One of Flower's commands, of the environment that this Python belongs to."""
    here = Path(sys.executable).with_name(name)
    return str(here) if here.exists() else name
