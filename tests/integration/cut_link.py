"""How long a client takes to come back when its link does: `python cut_link.py SECONDS ...`.

A server and two clients with TLS and keys, each at its own address, that train what never leaves
them (`strategy=local`). One client's link is cut for as long as each number says, one after the
other; a line of the printed table is one cut.
"""

import json
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from lan_runs import PATIENCE, wait_until
from namespaces import Network, RoomStage, reason_against_networks

from fedmoe.keys import make_keys

SERVER, CLIENTS = "10.77.0.1", ("10.77.0.11", "10.77.0.12")
COLUMNS = ["link cut, s", "rounds meanwhile", "of these without the client", "next good reply, s"]
WORDS = ["+experiment=local", "data=digits", "rounds=1000000", "tracking.checkpoint_every=1000"]


def main() -> None:
    """Cut and mend."""
    if (reason := reason_against_networks()) is not None:
        sys.exit(reason)
    say(*COLUMNS)
    say(*["---"] * len(COLUMNS))
    with tempfile.TemporaryDirectory() as folder, closing(Network(SERVER, *CLIENTS)) as network:
        stage = RoomStage(Path(folder))
        try:
            start(stage, network)
            for word in sys.argv[1:]:
                say(*cut(stage, network, float(word)))
        finally:
            stage.close()


def start(stage: RoomStage, network: Network) -> None:
    """A server that is open to the network, and its clients; returns after some rounds."""
    make_keys(stage.folder / "keys", addresses=[SERVER], clients=len(CLIENTS))
    stage.room = network.rooms[0]
    stage.server(*WORDS, "runtime.host=0.0.0.0", "runtime.keys=keys", name="run")
    for number, stage.room in enumerate(network.rooms[1:]):
        there = f"runtime.server={SERVER}:{stage.port}"
        stage.client(number, there, "client.keys=keys")
    wait_until(lambda: len(good(stage)) >= 3, stage.log("run"), 2 * PATIENCE)


def cut(stage: RoomStage, network: Network, seconds: float) -> list[str]:
    """One cut of the last client's link; the cells of its line."""
    last = len(CLIENTS)
    network.cut(last)
    time.sleep(0.5)  # what was under way has come
    before, rounds = len(good(stage)), len(stage.rounds("run"))
    time.sleep(seconds - 0.5)
    network.mend(last)
    mended = time.monotonic()
    wait_until(lambda: len(good(stage)) > before, stage.log("run"), 10 * PATIENCE)
    took = time.monotonic() - mended
    line = good(stage)[before]
    lost = sum(rounds < one["round"] < line["round"] for one in stage.rounds("run"))
    gone_on = sum(rounds < one["round"] <= line["round"] for one in stage.rounds("run"))
    # What it trains never leaves it: had it lost its state, its loss would be that of round 1.
    assert line["loss"] < good(stage)[0]["loss"], "it has lost its state"
    wait_until(lambda: len(good(stage)) > before + 3, stage.log("run"), 2 * PATIENCE)
    return [f"{seconds:g}", str(gone_on), str(lost), f"{took:.1f}"]


def good(stage: RoomStage) -> list[dict[str, Any]]:
    """The last client's good replies."""
    path = stage.folder / "run" / "clients.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [one for one in lines if (one["client"], one["status"]) == (len(CLIENTS) - 1, "ok")]


def say(*cells: str) -> None:
    """A line of a table."""
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
