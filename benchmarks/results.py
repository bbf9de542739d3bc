"""What was measured, and how it is kept."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One side on one case.

    Attributes:
        data, model, sampled: the case.
        side: who played.
        seconds: per round, one figure for each turn.
        startup: seconds from the start of the process to the end of its first round.
        peak_mb: highest resident memory, of all its processes together.
        loss: of the global model on the test samples at the end, in nats.
    """

    data: str
    model: str
    sampled: int
    side: str
    seconds: list[float]
    startup: float
    peak_mb: float
    loss: float

    @property
    def case(self) -> tuple[str, str, int]:
        """What was to be done."""
        return self.data, self.model, self.sampled


@dataclass(frozen=True, kw_only=True)
class Size:
    """One federation of a series.

    Attributes:
        part: the series.
        clients: how many there are.
        sampled: how many train in a round.
        seconds: of each measured round.
        startup: seconds from the start of the process to the end of its first round.
        peak_mb: highest resident memory.
    """

    part: str
    clients: int
    sampled: int
    seconds: list[float]
    startup: float
    peak_mb: float


def ratio(side: Measurement, base: Measurement) -> float:
    """How many times as long a side takes: the median over the turns, which lie side by side."""
    return median(a / b for a, b in zip(side.seconds, base.seconds, strict=True))


def find(measured: Iterable[Measurement], side: str) -> dict[tuple[str, str, int], Measurement]:
    """One side's measurements by case."""
    return {one.case: one for one in measured if one.side == side}


def save(measured: Sequence[Measurement] | Sequence[Size], path: Path) -> None:
    """Write all figures as JSON."""
    content = {"machine": machine(), "measured": [asdict(one) for one in measured]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def machine() -> str:
    """A line that says where the figures come from."""
    parts = []
    for package in ("torch", "flwr", "ray"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"no {package}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, Python {platform.python_version()}, {', '.join(parts)}"
