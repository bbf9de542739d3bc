"""Many processes of one benchmark, none of which is left when it ends."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from benchmarks.harness import environment

GRACE = 10.0  # seconds that they may take to end
_STEP = 0.05
_MARK = "FEDMOE_BENCHMARK"


@dataclass
class Started:
    """The processes of one run, which a mark in their environment tells from others."""

    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)


@contextmanager
def processes() -> Iterator[Started]:
    """A list for processes, of which and of whose children none is left at the end.

    Nor where this process is asked to end meanwhile (SIGTERM), which is a `SystemExit`.
    """
    started = Started()
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield started
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in living(started):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            wait(lambda: not living(started), GRACE)
        for process in started.processes:
            process.wait(GRACE)
        signal.signal(signal.SIGTERM, before)


def _end(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def start(
    started: Started, folder: Path, name: str, words: Sequence[str]
) -> subprocess.Popen[bytes]:
    """Start a module's process; what it says is appended to `NAME.log`."""
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=folder, env=environment() | {_MARK: started.mark},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    started.processes.append(process)
    return process


def living(started: Started) -> dict[int, str]:
    """The command lines of what was started, and of its children, that have not ended.

    A process that has just been started bears no mark for a moment.
    """
    own = [process for process in started.processes if process.poll() is None]
    return {one.pid: str(one.args) for one in own} | marked(started.mark)


def marked(mark: str) -> dict[int, str]:
    """The command lines of the living processes of a run."""
    wanted, found = f"{_MARK}={mark}".encode(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended, or is somebody else's
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if command:  # who has ended and was not asked yet has none
                    found[int(folder.name)] = command
    return found


def wait(holds: Callable[[], bool], seconds: float) -> None:
    """Until it holds, or for some seconds."""
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(_STEP)
