"""Federations of real processes on loopback, for tests of the server and client commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedmoe.config import load_config
from fedmoe.keys import make_keys
from fedmoe.lan.access import ClientKeys
from fedmoe.lan.fleet import Access
from fedmoe.lan.superlink import free_port
from fedmoe.offline import QUIET
from fedmoe.simulations import run_experiment

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds, on a busy machine
STAYING = 3
KEYS, MORE_KEYS = "keys", "more-keys"
SMALL = ["data=digits", "training=sgd", "data.validation_fraction=0.1"]


def wait_until(holds: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not in {seconds:g} s: {what}"
        time.sleep(0.05)


def in_process(words: list[str], folder: Path, clients: int) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` of the same run in one process."""
    config = load_config(
        [*words, f"partition.num_clients={clients}", "tracking.progress=none"],
        tracking={"plots": False},
    )
    run_experiment(config, folder)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_alike(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> None:
    """All that is no time is equal, up to the order in which floats are summed.

    Less goes down in all, since evaluations ride along with training.
    """
    assert len(theirs) == len(ours)
    theirs_down, ours_down = (sum(one["bytes"].pop("down") for one in r) for r in (theirs, ours))
    assert theirs_down <= ours_down
    for their, our in zip(theirs, ours, strict=True):
        for record in (their, our):
            record.pop("seconds", None)
        for key in ("round", "missing", "bytes"):
            assert their[key] == our[key]
        for key in ("train", "validation", "test"):
            assert flat(their[key]) == pytest.approx(flat(our[key]), abs=1e-5)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """What nested dictionaries hold, by path, without what is `None`."""
    if not isinstance(value, dict):
        return {} if value is None else {name: value}
    return {k: v for key, one in value.items() for k, v in flat(one, f"{name}.{key}").items()}


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
            *self.client_words(number), *words,
        )  # fmt: skip

    def client_words(self, number: int) -> list[str]:
        """What a client is told in any case."""
        return [
            f"runtime.server=127.0.0.1:{self.port}", f"client.partition={number}",
            f"client.state=state{number}",
        ]  # fmt: skip

    def make_keys(self, few: int, more: int) -> None:
        """Two folders of keys: in the second, the same keys and others; a key takes time."""
        make_keys(self.folder / KEYS, clients=few)
        shutil.copytree(self.folder / KEYS, self.folder / MORE_KEYS)
        make_keys(self.folder / MORE_KEYS, clients=more)

    def access(self, number: int | None = None) -> Access:
        """As one of the clients with keys reaches the server, or one without."""
        address, folder = f"127.0.0.1:{self.port}", self.folder / MORE_KEYS
        if number is None:
            return Access(address=address)
        keys = ClientKeys(folder / "ca.crt", folder / f"client-{number}")
        return Access(address=address, root_certificates=keys.root_certificates, keys=keys.pair())

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

    def rounds(self, folder: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """What has been written of a run so far."""
        path = self.folder / folder / file
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


def with_staying_clients(folder: Path) -> Iterator[Stage]:
    """Three clients with keys, which wait for one server after another; keys for 11 are there."""
    stage = Stage(folder)
    stage.make_keys(STAYING, 11)
    for number in range(STAYING - 1):
        stage.client(number, "client.stay=true", f"client.keys={KEYS}")
    own = stage.folder / "own-keys"  # of the last one, which need not say its number
    own.mkdir(mode=0o700)
    for name in ("ca.crt", f"client-{STAYING - 1}"):
        shutil.copy(stage.folder / KEYS / name, own)
    unnumbered = [f"client.keys={own}", "client.partition=null"]
    stage.client(STAYING - 1, "client.stay=true", *unnumbered)
    yield stage
    stage.close()
