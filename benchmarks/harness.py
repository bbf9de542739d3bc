"""The benchmark's end of the conversation: starts sides, lets them play in turn, watches memory.

While one side plays, the others are stopped with all their processes (SIGSTOP), so that nobody's
idle polling takes the core that another is measured on. See `child` for the words.
"""

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, Protocol, Self

ROOT = Path(__file__).parents[1]
PATIENCE = 300.0  # seconds that a side may take for one answer
TURN = 0.15  # seconds: a quick side plays several rounds in its turn
QUIET = {  # Flower and Ray phone home by default
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or Ray warns
}


class RefusedError(Exception):
    """A side cannot run here, and says why."""


def environment() -> dict[str, str]:
    """What every side's process gets: one thread, no calls home, this repository's modules."""
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **QUIET, **one_thread, "PYTHONPATH": str(ROOT)}


class Child:
    """A side's process.

    Attributes:
        startup: seconds from the start of the process to the end of its first round.
    """

    def __init__(self, command: Sequence[str | Path], log: Path) -> None:
        """Start it and wait for its first round.

        Args:
            command: the program and its words.
            log: where what it prints goes.

        Raises:
            RefusedError: it cannot run here.
            RuntimeError: it failed.
        """
        self._log, self._command = log, list(command)
        began = time.perf_counter()
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=environment(),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream,
            )  # fmt: skip
        try:
            answer = self._read()
            self.startup = time.perf_counter() - began
            if "refused" in answer:
                raise RefusedError(answer["refused"])
        except BaseException:
            self.end()
            raise

    def round(self) -> float:
        """Let it play one round; its seconds."""
        return float(self._ask("round")["seconds"])

    def stop(self) -> float | None:
        """End it in good order; the loss of its global model, in nats, where it has one."""
        loss: float | None = self._ask("stop")["loss"]
        self._process.wait(timeout=PATIENCE)
        return loss

    def peak_mb(self) -> float:
        """The peaks of resident memory of all its processes together, in MB."""
        return sum(peak_memory(number) for number in family(self._process.pid)) / 1e6

    def pause(self) -> None:
        """Stop all its processes where they are."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        """Make sure that nothing of it is left."""
        for number in reversed(family(self._process.pid)):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _ask(self, word: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        stream = self._process.stdout
        assert stream is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            line = stream.readline() if selector.select(PATIENCE) else b""
        if not line:
            said = self._log.read_text(errors="replace").strip()[-2000:]
            raise RuntimeError(f"{' '.join(map(str, self._command))}\n{said}\nno answer")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, number: signal.Signals) -> None:
        for process in family(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(process, number)


def family(process: int) -> list[int]:
    """A process and its descendants, parents first; only itself where there is no /proc."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            # "pid (name) state parent ...", and a name may hold spaces and brackets
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    members = [process]
    for member in members:
        members.extend(children.get(member, []))
    return members


def peak_memory(process: int) -> float:
    """Bytes: the highest resident memory of a process so far; 0 where it cannot be read.

    Not `ru_maxrss`, which begins with what the parent had when it started the process.
    """
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024.0 * int(line.split()[1])
    return 0.0


class Player(Protocol):
    """What `take_turns` needs of a child."""

    def round(self) -> float:
        """Seconds of one round."""

    def pause(self) -> None:
        """Be quiet."""

    def resume(self) -> None:
        """Be ready."""


def take_turns(
    players: Mapping[str, Player], turns: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Let the sides play in turn, each turn beginning with the next side.

    Args:
        players: running sides by name; they are paused here and stay paused.
        turns: measured turns of each.
        warm_up: turns before that, which do not count.

    Returns:
        Each side's seconds per round, the median of each turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in players}
    names = list(players)
    for turn in range(warm_up + turns):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            player = players[name]
            player.resume()
            rounds = [player.round()]
            while sum(rounds) < TURN:
                rounds.append(player.round())
            player.pause()
            if turn >= warm_up:
                seconds[name].append(median(rounds))
    return seconds
