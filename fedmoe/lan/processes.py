"""The processes that a command starts, and that must not outlive it.

Flower's SuperLink starts others, which start others, some in sessions of their own: a process
group does not hold them. What does is a mark in the environment, which all of them inherit.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fedmoe.offline import QUIET

_MARK = "FEDMOE_FAMILY"
_PR_SET_PDEATHSIG = 1
_STEP = 0.05  # seconds between two looks
_WATCH_STEP = 0.5


class Family:
    """A process that is started here and all that come of it; none is left when the context ends.

    Finding them takes `/proc`; elsewhere only the first process's group is ended, and Flower's
    own watch over parents does the rest.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        """Start nothing yet.

        Args:
            environment: for them, besides this process's own.
            log: file that their output is appended to.
        """
        self._name = uuid.uuid4().hex
        self.environment = {**os.environ, **QUIET, **environment, _MARK: self._name}
        self._log = log
        self._first: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], *, piped: bool = False) -> subprocess.Popen[bytes]:
        """Start a process, in a session of its own so that Ctrl-C does not reach it.

        Args:
            command: its words.
            piped: whether its standard input and output are pipes, and only its errors logged.
        """
        with self._log.open("ab") as stream:
            process = subprocess.Popen(
                command, env=self.environment, stderr=stream,
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else stream, start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )  # fmt: skip
        self._first.append(process)
        return process

    def members(self, program: str = "") -> list[int]:
        """The pids of those that live, or of those whose command line names a program."""
        mark, found = f"{_MARK}={self._name}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark not in (folder / "environ").read_bytes().split(b"\0"):
                    continue
                if program.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:  # gone meanwhile, or somebody else's
                continue
        return found

    def end(self, grace: float = 3.0) -> None:
        """End all of them: politely, and after some seconds at once."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            deadline = time.monotonic() + grace
            while self._living() and time.monotonic() < deadline:
                time.sleep(_STEP)
        for process in self._first:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):  # words that nobody has read
                        pipe.close()

    def _living(self) -> list[int]:
        for process in self._first:
            process.poll()  # one that has ended is a zombie until it is asked
        return self.members() or [p.pid for p in self._first if p.returncode is None]

    def _signal(self, number: signal.Signals) -> None:
        for process in self._first:
            if process.poll() is None:
                process.send_signal(number)
        for pid in self.members():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()


def _die_with_parent() -> None:
    """Ask the kernel for a SIGTERM when whoever starts this process is gone, killed or not."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_with_parent() -> None:
    """End this process, whatever it is at, as soon as the one that started it is gone.

    Flower's own watch interrupts the process, which a round that is not to be torn puts off; and
    a round whose server is gone has no end.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_STEP)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
