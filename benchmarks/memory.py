"""What processes weigh: resident memory, and how much of it is theirs alone."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# By the kernel's names, in kB: a page that n processes share is 1/n of a page in PSS, none in USS.
_FIELDS = {"Rss": "rss", "Pss": "pss", "Private_Clean": "uss", "Private_Dirty": "uss"}


@dataclass(frozen=True)
class Memory:
    """Of one process, or the sum over several, in MB.

    Attributes:
        rss: resident pages; shared ones count in full.
        pss: resident pages, shared ones by the number of processes that share them.
        uss: pages of its own, which would be free without it.
    """

    rss: float
    pss: float
    uss: float

    def __add__(self, other: "Memory") -> "Memory":
        """Of both together."""
        return Memory(self.rss + other.rss, self.pss + other.pss, self.uss + other.uss)


def memory_of(process: int) -> Memory | None:
    """A process's memory; `None` where it has ended or cannot be looked into."""
    with suppress(OSError):
        return parsed(Path(f"/proc/{process}/smaps_rollup").read_text())
    return None


def parsed(text: str) -> Memory:
    """Linux's `smaps_rollup`."""
    found = {"rss": 0.0, "pss": 0.0, "uss": 0.0}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in _FIELDS:
            found[_FIELDS[name]] += 1024 * int(value.split()[0]) / 1e6
    return Memory(**found)
