"""How long a deployment takes to recover: seconds of the longest round after each fault.

    python benchmarks/lan_faults.py [--repeats 3] [--moments 0] [--keys] [--seed 0]

A server and three clients on loopback. A fault comes between two rounds or in one; the round that
has to do without the client is the longest that follows. What is killed is started again before
the next fault. `--moments` kills a client, and the server, so many times at random moments each,
and starts it again at once: until the client's second good reply, and until the next round. Times
depend on the machine where a process is started, and else on the rules of
docs/deployment-faults.md.
"""

import argparse
import json
import random
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

from benchmarks.crowd import Started, living, processes, start
from benchmarks.results import machine
from benchmarks.tables import Sheet, significant, wide_console
from fedmoe.keys import make_keys
from fedmoe.lan.superlink import free_port

CLIENTS, VICTIM, PATIENCE = 3, 2, 180.0
_STEP = 0.02  # seconds
_TAIL = 8192  # bytes, of some rounds
_MOMENTS = 1.5  # seconds in which a random one lies
EXPERIMENT = ["+experiment=fedavg", "rounds=100000", "tracking.plots=false"]


class Deployment:
    """Processes in a folder."""

    def __init__(self, folder: Path, started: Started, *, keys: bool = False) -> None:
        self.folder, self.run, self.started, self.keys = folder, folder / "run", started, keys
        if keys:
            make_keys(folder / "keys", clients=CLIENTS)
        self.port = free_port()
        waited = f"runtime.min_clients={CLIENTS}"
        self.server = self.start("server", *EXPERIMENT, waited, f"hydra.run.dir={self.run}")
        self.clients = [self.client(number) for number in range(CLIENTS)]

    def start(self, module: str, *words: str) -> subprocess.Popen[bytes]:
        """A command of the package, at this deployment's port."""
        where = f"127.0.0.1:{self.port}"
        key = f"runtime.port={self.port}" if module == "server" else f"runtime.server={where}"
        if self.keys:
            words = (*words, f"{'runtime' if module == 'server' else module}.keys=keys")
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

    def client_killed(self, after: float) -> float:
        """From a client's end, at some moment, to its next good reply but one.

        What it sent at the very end may count, so that one alone would say nothing.
        """
        self.wait_for(self.is_whole)
        time.sleep(after)
        self.clients[VICTIM].kill()
        self.clients[VICTIM].wait()
        answered = self.run / "clients.jsonl"
        before, began = last_good(answered, VICTIM), time.monotonic()
        self.clients[VICTIM] = self.client(VICTIM)
        self.wait_for(lambda: last_good(answered, VICTIM) > before + 1)
        return time.monotonic() - began

    def server_killed(self, after: float = 0.0) -> float:
        """From the server's end, at some moment, to the first round after it was resumed."""
        self.wait_for(self.is_whole)
        time.sleep(after)
        began = time.monotonic()
        self.server.kill()
        self.server.wait()
        self.wait_for(lambda: len(living(self.started)) == CLIENTS)  # and what it had started
        log = self.run / "run.log"  # records are cut back, a log only grows
        before = log.read_text().count(" clients trained")
        self.server = self.start("server", f"resume={self.run}")
        self.wait_for(lambda: log.read_text().count(" clients trained") > before)
        return time.monotonic() - began


def last_good(path: Path, client: int) -> int:
    """The last round that a client has replied well to, by the end of `clients.jsonl`; else 0."""
    lines = path.read_bytes()[-_TAIL:].decode(errors="replace").split("\n")[1:-1]
    told = [json.loads(line) for line in lines]
    return max(
        (o["round"] for o in told if o["client"] == client and o["status"] == "ok"), default=0
    )


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = read_options(words)
    rng = random.Random(options.seed)
    found: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="fedmoe-benchmark-") as folder,
        processes() as started,
    ):
        deployment = Deployment(Path(folder), started, keys=options.keys)
        faults = [measured(deployment)] * options.repeats
        faults += [at_any_moment(deployment, rng)] * options.moments
        for some in faults:
            for name, seconds in some.items():
                found.setdefault(name, []).append(seconds())
    console = wide_console()
    console.print(machine())
    console.print(as_sheet(found).as_rich())


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time a deployment's recovery.")
    parser.add_argument("--repeats", type=int, default=3, help="of each fault")
    parser.add_argument("--moments", type=int, default=0, help="random ones to kill at, as well")
    parser.add_argument("--keys", action="store_true", help="TLS, and a key for each client")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    return parser.parse_args(words)


def at_any_moment(deployment: Deployment, rng: random.Random) -> dict[str, Callable[[], float]]:
    """What is killed and started again, by name."""
    return {
        "client, at any moment": lambda: deployment.client_killed(rng.uniform(0.0, _MOMENTS)),
        "server, at any moment": lambda: deployment.server_killed(rng.uniform(0.0, _MOMENTS)),
    }


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
