"""How a federation of separate processes on this machine does: time, memory, and how it ends.

    python benchmarks/lan.py [WORDS ...] [--clients 16] [--rounds 20] [--links plain keys]
        [--out runs/lan]

A server and as many client processes as said, `+experiment=fedavg` on the digits unless the words
say otherwise; once with plain connections and once with TLS and a key for each client. Prints a
table, and leaves it and all figures under --out. No process stays, whatever happens. Memory is
read half way through; needs /proc.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a script, from anywhere

from benchmarks.crowd import GRACE, Started, living, marked, processes, start, wait
from benchmarks.memory import Memory, memory_of
from benchmarks.results import machine
from benchmarks.tables import Sheet, significant, wide_console
from fedmoe.keys import make_keys
from fedmoe.lan.superlink import free_port

LINKS = ("plain", "keys")
SERVER, CLIENT = "fedmoe.server", "fedmoe.client"
WORDS = ["+experiment=fedavg", "data=digits", "tracking.plots=false"]
PHASES = ("train", "evaluate")
# A process's name in the table, by what its command line holds; the last that fits.
ROLES = {
    SERVER: "server command", "flower-superlink": "SuperLink",
    "flower-superexec": "SuperExec", "flwr-serverapp": "ServerApp", CLIENT: "client",
}  # fmt: skip
PATIENCE = 1800.0  # seconds that a whole run may take


@dataclass(kw_only=True)
class Federation:
    """What was measured.

    Attributes:
        link: of `LINKS`.
        clients: how many there were.
        codes: exit codes, of the server first.
        startup: seconds from the first process's start to the first round's.
        seconds: of each round, by phase, `rest` and `total`.
        memory: of each process, by role.
        left: command lines of processes that outlived the server and its clients.
    """

    link: str
    clients: int
    codes: list[int] = field(default_factory=list)
    startup: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, list[Memory]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """Whether all went well, in words."""
        if any(self.codes):
            return f"failed: exit codes {self.codes}"
        return "left processes behind" if self.left else "completed"


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    options = read_options(words)
    options.out.mkdir(parents=True, exist_ok=True)
    measured = [run(link, options) for link in options.links]
    (options.out / "lan.json").write_text(
        json.dumps({"machine": machine(), "measured": [asdict(one) for one in measured]}, indent=1)
    )
    title = f"{options.clients} clients, {options.rounds} rounds"
    sheet = as_sheet(" ".join([title, *options.words]), measured)
    console = wide_console()
    console.print(sheet.as_rich())
    (options.out / "lan.md").write_text(f"{machine()}\n{sheet.as_markdown()}", encoding="utf-8")
    console.print(f"figures and table: {options.out}", markup=False)
    if any(one.outcome != "completed" for one in measured):
        sys.exit(1)


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time and weigh a federation of processes.")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--links", nargs="+", choices=LINKS, default=list(LINKS))
    parser.add_argument("--out", type=Path, default=Path("runs", "lan"))
    options, overrides = parser.parse_known_args(words)
    options.words = overrides
    if options.clients < 1 or options.rounds < 2:
        parser.error("--clients from 1, --rounds from 2")
    return options


def run(link: str, options: argparse.Namespace) -> Federation:
    """Start all processes at once, and see them to their end."""
    found = Federation(link=link, clients=options.clients)
    with tempfile.TemporaryDirectory(prefix="fedmoe-benchmark-") as name:
        folder, port = Path(name), free_port()
        keys = link == "keys"
        if keys:
            make_keys(folder / "keys", clients=options.clients)
        server = [
            SERVER, *WORDS, f"rounds={options.rounds}", f"runtime.port={port}",
            f"runtime.min_clients={options.clients}", "tracking.profile=true",
            "tracking.progress=none", "hydra.run.dir=run", *options.words,
            *(["runtime.keys=keys"] if keys else []),
        ]  # fmt: skip
        began = time.time()
        with processes() as started:
            start(started, folder, "server", server)
            for number in range(options.clients):
                client = [
                    CLIENT, f"runtime.server=127.0.0.1:{port}",
                    f"client.partition={number}", f"client.state=state{number}",
                    *(["client.keys=keys"] if keys else []),
                ]  # fmt: skip
                start(started, folder, f"client{number}", client)
            follow(found, started, folder / "run" / "profile.jsonl", options.rounds)
            found.left = list(living(started).values())
        if any(found.codes):
            sys.stderr.write((folder / "server.log").read_text(errors="replace")[-2000:])
        else:
            read_rounds(found, folder / "run", began)
    return found


def follow(found: Federation, started: Started, profile: Path, rounds: int) -> None:
    """Weigh the processes half way through, and note how they end."""
    server, *clients = started.processes
    wait(lambda: server.poll() is not None or len(lines_of(profile)) >= rounds // 2, PATIENCE)
    if server.poll() is None:
        for pid, command in marked(started.mark).items():
            role = [name for program, name in ROLES.items() if program in command]
            weight = memory_of(pid)
            if role and weight is not None:
                found.memory.setdefault(role[-1], []).append(weight)
    wait(lambda: server.poll() is not None, PATIENCE)
    grace = GRACE if server.returncode == 0 else 0.0
    wait(lambda: all(client.poll() is not None for client in clients), grace)
    found.codes = [-1 if one.returncode is None else one.returncode for one in started.processes]


def read_rounds(found: Federation, run_dir: Path, began: float) -> None:
    """Take over the seconds that the run has noted."""
    lines = lines_of(run_dir / "profile.jsonl")
    for phase in PHASES:
        found.seconds[phase] = [line[phase] for line in lines]
    found.seconds["total"] = [line["seconds"] for line in lines]
    found.seconds["rest"] = [
        line["seconds"] - sum(line[phase] for phase in PHASES) for line in lines
    ]
    ended = (run_dir / "profile.jsonl").stat().st_mtime
    found.startup = ended - began - sum(found.seconds["total"])


def as_sheet(title: str, measured: Sequence[Federation]) -> Sheet:
    """A column for each kind of link."""
    names = ["total", *PHASES, "rest"]
    rows = [["outcome", *(one.outcome for one in measured)]]
    rows.append(["seconds to the first round", *(significant(one.startup) for one in measured)])
    for name in names:
        label = "round" if name == "total" else name
        cells = [_seconds(one.seconds.get(name, [])) for one in measured]
        rows.append([f"seconds per round: {label}, median and worst", *cells])
    roles = [role for role in ROLES.values() if any(role in one.memory for one in measured)]
    for role in roles:
        cells = [_megabytes(middle(one.memory.get(role, []))) for one in measured]
        rows.append([f"MB, {role}: RSS, PSS, USS", *cells])
    totals = [
        sum((w for ws in one.memory.values() for w in ws), Memory(0, 0, 0)) for one in measured
    ]
    rows.append(["MB, all together: RSS, PSS, USS", *map(_megabytes, totals)])
    return Sheet(title, ["", *(one.link for one in measured)], rows)


def middle(weights: Sequence[Memory]) -> Memory:
    """The median of each."""
    if not weights:
        return Memory(0.0, 0.0, 0.0)
    return Memory(
        *(median(getattr(one, kind) for one in weights) for kind in ("rss", "pss", "uss"))
    )


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines that a file has so far."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _seconds(values: Sequence[float]) -> str:
    return f"{significant(median(values))}, {significant(max(values))}" if values else ""


def _megabytes(memory: Memory) -> str:
    return f"{memory.rss:,.0f}, {memory.pss:,.0f}, {memory.uss:,.0f}"


if __name__ == "__main__":
    main()
