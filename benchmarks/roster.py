"""Who is measured, and how each is started."""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environments import PEERS, environment

OURS = "ours"
CEILING = "stacked by hand"
# A module of benchmarks.sides and its words; WORK stands for the file.
HERE = {
    OURS: "ours WORK",
    "ours + evaluation": "ours WORK evaluate_every=1",
    "ours on Ray": "ours WORK runtime=ray",
    "ours on a GPU": "ours WORK training.device=cuda",
    "ours, stock FedAvg": "ours WORK strategy=stock strategy.class_name=FedAvg",
    CEILING: "ceiling WORK",
    "loop, our NumPyClient": "loop fedmoe WORK",
    "loop, textbook client": "loop textbook WORK",
    "Flower on Ray": "flower WORK",
}
# BlazeFL's parallel modes are there for who asks for them by name.
ABROAD = {
    "blazefl": "WORK serial",
    "blazefl, threads": "WORK threads",
    "blazefl, processes": "WORK processes",
    "pfl": "WORK",
    "fluke": "WORK",
}
ALL = (*HERE, *ABROAD)
Command = list[str | Path]


def default(peers: bool) -> list[str]:
    """The sides of a usual run."""
    return [*HERE, *(PEERS if peers else ())]


def is_peer(side: str) -> bool:
    """Whether a side needs an environment of its own."""
    return side in ABROAD


def prepare(sides: Sequence[str]) -> dict[str, str]:
    """Make the environments that the sides need.

    Returns:
        The sides whose environment could not be made, and why.
    """
    refused = {}
    for side in filter(is_peer, sides):
        try:
            environment(_peer(side))
        except RuntimeError as error:
            refused[side] = str(error)
    return refused


def command(side: str, work: Path) -> Command:
    """How to start a side on some work."""
    words = [str(work) if word == "WORK" else word for word in (HERE | ABROAD)[side].split()]
    if is_peer(side):
        script = Path(__file__).parent / "peers" / _peer(side) / "side.py"
        return [environment(_peer(side)), script, *words]
    return [sys.executable, "-m", f"benchmarks.sides.{words[0]}", *words[1:]]


def _peer(side: str) -> str:
    return side.partition(",")[0]
