"""How long a deployment takes to recover: seconds of the longest round after each fault.

    python benchmarks/lan_faults.py [--repeats 3]

A server and three clients on loopback, without keys. A fault comes between two rounds or in one;
the round that has to do without the client is the longest that follows. What is killed is started
again before the next fault. Times depend on the machine where a process is started, and else on
the rules of docs/deployment-faults.md.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a script, from anywhere

from benchmarks.crowd import Started, processes, start
from benchmarks.results import machine
from benchmarks.tables import Sheet, significant, wide_console
from fedmoe.lan.superlink import free_port

CLIENTS, VICTIM, PATIENCE = 3, 2, 180.0
_STEP = 0.02  # seconds
EXPERIMENT = ["+experiment=fedavg", "rounds=100000", "tracking.plots=false"]


class Deployment:
    """Processes in a folder."""

    def __init__(self, folder: Path, started: Started) -> None:
        self.folder, self.run, self.started = folder, folder / "run", started
        self.port = free_port()
        waited = f"runtime.min_clients={CLIENTS}"
        self.server = self.start("server", *EXPERIMENT, waited, f"hydra.run.dir={self.run}")
        self.clients = [self.client(number) for number in range(CLIENTS)]

    def start(self, module: str, *words: str) -> subprocess.Popen[bytes]:
        """A command of the package, at this deployment's port."""
        where = f"127.0.0.1:{self.port}"
        key = f"runtime.port={self.port}" if module == "server" else f"runtime.server={where}"
        return start(self.started, self.folder, "all", [f"fedmoe.{module}", key, *words])

    def client(self, number: int) -> subprocess.Popen[bytes]:
        """One client, with its state in a folder of its own."""
        return self.start("client", f"client.partition={number}", f"client.state=state{number}")

    def rounds(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` so far."""
        path = self.run / "metrics.jsonl"
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def wait_for(self, holds: Callable[[], bool]) -> None:
        """Look until something holds.

        Raises:
            TimeoutError: it does not come to hold.
        """
        deadline = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError((self.folder / "all.log").read_text()[-2000:])
            time.sleep(_STEP)

    def is_whole(self) -> bool:
        """Whether all clients were in the last round."""
        rounds = self.rounds()
        return bool(rounds) and rounds[-1]["train"]["clients"] == CLIENTS

    def longest_after(self, fault: Callable[[], object], repair: Callable[[], object]) -> float:
        """Seconds of the longest round of those from a fault until all clients are in again."""
        self.wait_for(self.is_whole)
        before = len(self.rounds())
        fault()
        self.wait_for(lambda: len(self.rounds()) > before + 2)  # the one that was under way, too
        repair()
        after = len(self.rounds())
        self.wait_for(lambda: len(self.rounds()) > after and self.is_whole())
        return max(float(one["seconds"]) for one in self.rounds()[before:])

    def signalled(self, number: signal.Signals, again: bool) -> float:
        """A client is ended by a signal, and started again then or when it is missed."""

        def fault() -> None:
            self.clients[VICTIM].send_signal(number)
            self.clients[VICTIM].wait()
            if again:
                again_there()

        def again_there() -> None:
            self.clients[VICTIM] = self.client(VICTIM)

        return self.longest_after(fault, (lambda: None) if again else again_there)

    def stopped(self) -> float:
        """A client's process is stopped, as by a machine that sleeps, and goes on."""
        process = self.clients[VICTIM]
        return self.longest_after(
            lambda: process.send_signal(signal.SIGSTOP),
            lambda: process.send_signal(signal.SIGCONT),
        )

    def server_killed(self) -> float:
        """From the server's end to the first round after it was resumed."""
        self.wait_for(self.is_whole)
        self.server.kill()
        self.server.wait()
        log = self.run / "run.log"  # records are cut back, a log only grows
        before, began = log.read_text().count(" clients trained"), time.monotonic()
        self.server = self.start("server", f"resume={self.run}")
        self.wait_for(lambda: log.read_text().count(" clients trained") > before)
        return time.monotonic() - began


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time a deployment's recovery.")
    parser.add_argument("--repeats", type=int, default=3, help="of each fault")
    repeats = parser.parse_args(words).repeats
    found: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="fedmoe-benchmark-") as folder,
        processes() as started,
    ):
        deployment = Deployment(Path(folder), started)
        for _ in range(repeats):
            for name, seconds in measured(deployment).items():
                found.setdefault(name, []).append(seconds())
    console = wide_console()
    console.print(machine())
    console.print(as_sheet(found).as_rich())


def measured(deployment: Deployment) -> dict[str, Callable[[], float]]:
    """What is done, by name."""
    return {
        "client SIGTERM": lambda: deployment.signalled(signal.SIGTERM, again=False),
        "client SIGKILL": lambda: deployment.signalled(signal.SIGKILL, again=False),
        "client SIGKILL, started again": lambda: deployment.signalled(signal.SIGKILL, again=True),
        "client SIGSTOP": deployment.stopped,
        "server SIGKILL, resumed": deployment.server_killed,
    }


def as_sheet(found: dict[str, list[float]]) -> Sheet:
    """A fault a row."""
    rows = [
        [
            name,
            significant(median(times)),
            f"{significant(min(times))} to {significant(max(times))}",
        ]
        for name, times in found.items()
    ]
    return Sheet("seconds until the run goes on", ["", "median", "lowest and highest"], rows)


if __name__ == "__main__":
    main()
