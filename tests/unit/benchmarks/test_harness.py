"""Sides are started, play when they are told to, are quiet otherwise, and leave nothing behind."""

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.harness import Child, RefusedError, family, peak_memory, take_turns

SIDE = """
import sys, time
from benchmarks.child import Parent, play
parent = Parent()
print("libraries print what they like")
{rest}
"""
PLAYS = "rounds = []\nplay(parent, lambda: rounds.append(1), lambda: float(len(rounds)))"


def child(folder: Path, rest: str) -> Child:
    return Child([sys.executable, "-c", SIDE.format(rest=rest)], folder / "log")


def test_a_side_plays_one_round_unasked_and_then_those_it_is_told_to(tmp_path: Path) -> None:
    with child(tmp_path, PLAYS) as side:
        seconds = [side.round(), side.round()]
        side.pause()
        side.resume()
        assert side.peak_mb() > 1
        assert side.stop() == 3.0
    assert all(0 <= one < 1 for one in seconds)
    assert side.startup > 0
    assert "libraries print" in (tmp_path / "log").read_text()


def test_a_side_that_cannot_run_here_says_why(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no such runtime"):
        child(tmp_path, 'parent.say(refused="no such runtime")')


def test_a_side_that_fails_is_reported_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken by design"):
        child(tmp_path, 'raise ValueError("broken by design")')


def test_the_processes_of_a_side_end_with_it(tmp_path: Path) -> None:
    sleeper = "import subprocess\nsubprocess.Popen(['sleep', '60'])\n"
    with child(tmp_path, sleeper + PLAYS) as side:
        members = family(side._process.pid)
        assert len(members) == 2
    deadline = time.monotonic() + 10  # the kernel takes its time
    while any(map(is_alive, members)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_alive, members))


def is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def test_memory_is_the_highest_so_far() -> None:
    before = peak_memory(os.getpid())
    block = bytearray(64_000_000)
    assert peak_memory(os.getpid()) >= before
    del block
    assert peak_memory(os.getpid()) >= 64_000_000
    assert peak_memory(-1) == 0.0


class Player:
    """Notes what it is told; its rounds take as long as it says."""

    def __init__(self, name: str, seconds: float, notes: list[str]) -> None:
        self.name, self.seconds, self.notes = name, seconds, notes
        self.rounds = 0

    def round(self) -> float:
        self.notes.append(f"{self.name} plays")
        self.rounds += 1
        return self.seconds * self.rounds

    def pause(self) -> None:
        self.notes.append(f"{self.name} pauses")

    def resume(self) -> None:
        self.notes.append(f"{self.name} resumes")


def test_one_side_plays_at_a_time_and_each_begins_in_its_turn() -> None:
    notes: list[str] = []
    players = {name: Player(name, 1.0, notes) for name in "ab"}
    seconds = take_turns(players, turns=2, warm_up=1)
    turn = {name: [f"{name} resumes", f"{name} plays", f"{name} pauses"] for name in "ab"}
    assert notes == [*turn["a"], *turn["b"], *turn["b"], *turn["a"], *turn["a"], *turn["b"]]
    assert seconds == {"a": [2.0, 3.0], "b": [2.0, 3.0]}  # the first turn does not count


def test_a_quick_side_plays_several_rounds_and_the_median_counts() -> None:
    player = Player("a", 0.02, [])
    # 0.02 + 0.04 + 0.06 + 0.08 seconds fill the turn; the median is of these four.
    assert take_turns({"a": player}, turns=1, warm_up=0)["a"] == [pytest.approx(0.05)]
