"""Federations of real processes on loopback, for tests of the server and client commands."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmoe.offline import QUIET

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds, on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(holds: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not in {seconds:g} s: {what}"
        time.sleep(0.05)


@dataclass
class Stage:
    """Processes of one test, all marked in their environment so that none is overlooked."""

    folder: Path
    port: int = field(default_factory=free_port)
    mark: str = field(default_factory=lambda: f"FEDMOE_TEST={uuid.uuid4().hex}")
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        own = {key: v for key, v in os.environ.items() if not key.startswith("FED_MOE_")}
        name, _, value = self.mark.partition("=")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        home = str(self.folder / "home")
        own |= QUIET | {"FLWR_HOME": home, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
        return {**own, name: value, "PYTHONPATH": str(REPOSITORY), "PATH": path}

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment(), stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    def server(self, *words: str, name: str = "server") -> subprocess.Popen[bytes]:
        return self.start(
            name, sys.executable, "-m", "fedmoe.server", f"runtime.port={self.port}",
            f"hydra.run.dir={name}", "tracking.plots=false", "tracking.progress=lines", *words,
        )  # fmt: skip

    def client(self, number: int, *words: str) -> subprocess.Popen[bytes]:
        return self.start(
            f"client{number}", sys.executable, "-m", "fedmoe.client",
            f"runtime.server=127.0.0.1:{self.port}", f"client.partition={number}",
            f"client.state=state{number}", *words,
        )  # fmt: skip

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def living(self) -> dict[int, str]:
        """Every process that comes of this test."""
        found = {}
        for process in self.started:
            process.poll()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    if words:  # a zombie has none
                        found[int(folder.name)] = words.decode(errors="replace")
            except OSError:
                continue
        return found

    def rounds(self, folder: str) -> list[dict[str, Any]]:
        path = self.folder / folder / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def close(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.living():
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
            deadline = time.monotonic() + 5.0
            while self.living() and time.monotonic() < deadline:
                time.sleep(0.05)
        for process in self.started:
            process.wait(5.0)
