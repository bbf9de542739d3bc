"""The speed benchmark runs from its command line, with sides in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import scale
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


def test_a_federation_is_timed_and_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "PARTS", {"tiny": scale.Part(scale.HELD, "linear", [(6, 3)])})
    (size,) = scale.measure(["tiny"], rounds=2)
    assert (size.part, size.clients, size.sampled, len(size.seconds)) == ("tiny", 6, 3, 2)
    assert size.peak_mb > 50


def test_a_whole_run_is_timed_and_weighed() -> None:
    sheet = scale.whole_run(["+experiment=scarcity", "rounds=2", "tracking.plots=false"])
    assert sheet.columns == ["", "2 rounds"]
    assert float(sheet.rows[0][1].replace(",", "")) > 50  # MiB


def test_a_run_that_fails_is_reported_with_what_it_said() -> None:
    with pytest.raises(RuntimeError, match="no such key"):
        scale.whole_run(["modle=mlp"])
