"""The benchmark of separate processes, with small processes in place of servers and clients."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benchmarks import crowd, lan
from benchmarks.crowd import Started, marked, processes, start
from benchmarks.harness import ROOT, environment
from benchmarks.lan import Federation, as_sheet, main, middle
from benchmarks.memory import Memory, memory_of, parsed

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="reads memory from /proc"
)
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, "child"], start_new_session=True)
open(f"there{len(sys.argv)}", "w").close()
time.sleep(600)
"""


def test_a_run_is_timed_weighed_and_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fakes(monkeypatch)
    main(["--clients", "2", "--rounds", "5", "--out", str(tmp_path), "strategy=fedavg"])
    plain, keys = json.loads((tmp_path / "lan.json").read_text())["measured"]
    for one in (plain, keys):
        assert one["codes"] == [0, 0, 0]
        assert one["left"] == []
        assert one["seconds"]["total"] == [1.0, 2.0, 3.0, 4.0, 5.0]
        assert one["seconds"]["rest"] == [0.25, 1.25, 2.25, 3.25, 4.25]
        assert len(one["memory"]["client"]) == 2
        assert len(one["memory"]["server command"]) == 1
        for weight in (weight for weights in one["memory"].values() for weight in weights):
            assert 1 < weight["uss"] <= weight["pss"] <= weight["rss"]
    text = (tmp_path / "lan.md").read_text()
    assert "2 clients, 5 rounds strategy=fedavg" in text
    assert "| outcome | completed | completed |" in text
    assert "| seconds per round: round, median and worst | 3.00, 5.00 | 3.00, 5.00 |" in text


def test_a_run_that_fails_is_said_to_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_fakes(monkeypatch)
    words = ["fails=yes", "--clients", "1", "--links", "plain", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="1"):
        main(words)
    said = capsys.readouterr()
    assert "fedmoe: error: it fails" in said.err
    assert "failed: exit codes [1, -1]" in said.out
    (one,) = json.loads((tmp_path / "lan.json").read_text())["measured"]
    assert one["left"]  # the client, which waits for a server


def use_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file plays both parts, which its command line tells apart."""
    here = {**environment(), "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    monkeypatch.setattr(crowd, "environment", lambda: here)
    for name in ("SERVER", "CLIENT"):
        monkeypatch.setattr(lan, name, "lan_fake")
    monkeypatch.setattr(lan, "ROLES", {"rounds=": "server command", "client.state": "client"})


def test_none_stays_not_even_who_ignores_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(crowd, "GRACE", 0.1)
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    with pytest.raises(SystemExit, match="143"), processes() as started:
        start(started, tmp_path, "log", ["stubborn"])
        while not all((tmp_path / f"there{number}").exists() for number in (1, 2)):
            time.sleep(0.01)
        assert len(marked(started.mark)) == 2
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60.0)
    assert not marked(started.mark)
    assert signal.getsignal(signal.SIGTERM) == before
    assert started.processes[0].returncode == -9


def test_none_stays_that_bears_no_mark_as_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crowd, "marked", lambda mark: {})
    with processes() as started:
        start(started, tmp_path, "log", ["http.server", "0", "--bind", "127.0.0.1"])
    assert started.processes[0].returncode == -signal.SIGTERM


def test_others_processes_are_not_marked() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert other.pid not in marked(Started().mark)
        other.communicate(b"\n")


def test_memory_is_read_as_linux_writes_it() -> None:
    text = (
        "55d0-7ffe ---p 00000000 00:00 0    [rollup]\n"
        "Rss:              1000 kB\nPss:               600 kB\nPss_Anon:          500 kB\n"
        "Shared_Clean:      400 kB\nPrivate_Clean:     200 kB\nPrivate_Dirty:     300 kB\n"
    )
    found = parsed(text)
    assert (found.rss, found.pss, found.uss) == pytest.approx((1.024, 0.6144, 0.512))
    assert memory_of(2**22 + 1) is None  # more than there can be pids


def test_the_middle_is_that_of_each_measure_alone() -> None:
    weights = [Memory(3, 1, 9), Memory(1, 2, 8), Memory(2, 9, 1)]
    assert middle(weights) == Memory(*map(float, (2, 2, 8)))
    for kind in ("rss", "pss", "uss"):
        assert getattr(middle(weights), kind) == median(getattr(one, kind) for one in weights)


def test_a_table_has_all_processes_and_their_sum() -> None:
    sheet = as_sheet("title", [federation(), federation(left=["python"])])
    cells = {row[0]: row[1:] for row in sheet.rows}
    assert cells["outcome"] == ["completed", "left processes behind"]
    assert cells["MB, client: RSS, PSS, USS"][0] == "30, 20, 10"
    assert cells["MB, all together: RSS, PSS, USS"][0] == "1,160, 90, 45"
    assert cells["seconds per round: train, median and worst"][0] == "2.00, 9.00"
    assert cells["seconds per round: evaluate, median and worst"][0] == ""


def federation(**changed: Any) -> Federation:
    weights = {
        "server command": [Memory(1100, 50, 25)],
        "client": [Memory(20, 15, 5), Memory(40, 25, 15)],
    }
    seconds = {"total": [1.0, 3.0, 9.0], "train": [1.0, 2.0, 9.0]}
    return Federation(
        **{"link": "plain", "clients": 2, "codes": [0, 0, 0], "memory": weights,
           "seconds": seconds, **changed}
    )  # fmt: skip
