"""The speed benchmark runs from its command line, with sides in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import ROOT


def test_sides_are_measured_from_the_command_line(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "speed.py"
    words = "--data digits --models linear --sampled 10 --repeats 2 --out"
    sides = ["--sides", "ours", "loop, textbook client"]
    done = subprocess.run(
        [sys.executable, script, *words.split(), tmp_path, *sides],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "10 of 100 clients: seconds per round, in ours" in done.stdout
    measured = json.loads((tmp_path / "speed.json").read_text())["measured"]
    assert [one["side"] for one in measured] == ["ours", "loop, textbook client"]
    for one in measured:
        assert len(one["seconds"]) == 2
        assert one["startup"] > max(one["seconds"])
        assert one["peak_mb"] > 50
    assert (tmp_path / "speed.png").exists()
    assert (tmp_path / "speed.md").exists()
