"""The benchmark of recovery: what it reads of a run that goes on."""

import json
import random
from pathlib import Path

from benchmarks.lan_faults import _MOMENTS, at_any_moment, last_good, read_options


def test_the_last_good_reply_is_found_at_the_end_of_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "clients.jsonl"
    lines = [
        json.dumps({"round": round, "client": client, "status": "failed" if late else "ok"})
        for round in range(1, 301)
        for client in range(3)
        for late in [client == 2 and round > 297]
    ]
    path.write_text("\n".join(lines) + '\n{"round": 999, "client": 2, "sta')
    assert path.stat().st_size > 10_000
    assert [last_good(path, client) for client in range(3)] == [300, 300, 297]
    assert last_good(path, 7) == 0


def test_moments_are_those_of_the_seed() -> None:
    class Noted:
        def __init__(self) -> None:
            self.client_killed = self.server_killed = self.note
            self.moments: list[float] = []

        def note(self, after: float) -> float:
            self.moments.append(after)
            return after

    both = []
    for _ in range(2):
        noted = Noted()
        for _ in range(3):
            for kill in at_any_moment(noted, random.Random(5)).values():  # type: ignore[arg-type]
                kill()
        both.append(noted.moments)
    assert both[0] == both[1] and all(0.0 <= moment <= _MOMENTS for moment in both[0])
    assert len(set(both[0])) == 2  # a client's, and the server's
    assert (read_options([]).moments, read_options(["--keys"]).keys) == (0, True)
