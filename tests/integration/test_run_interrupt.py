import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from federation_runs import REGRESSION, all_lines, assert_same_checkpoint, resume, run

from fedmoe.interrupt import deferred_interrupt
from fedmoe.tracking import load_checkpoint

HANG_SECONDS = 120.0  # only a test that hangs gets there
TINY = [*REGRESSION, "strategy=insight", "tracking.checkpoint_every=0", "rounds=100000"]


def start(cwd: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedmoe.simulate", *words],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if not k.startswith("FED_MOE_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_lines(path: Path, count: int) -> Callable[[], bool]:
    file = path / "metrics.jsonl"
    return lambda: file.exists() and file.read_bytes().count(b"\n") >= count


def summary(path: Path) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return whole


# ----------------------------------------------------------------------- in this process


def test_the_first_interrupt_waits_and_the_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupted()
    assert signal.getsignal(signal.SIGINT) is before


def test_the_handler_is_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="x"), deferred_interrupt():
        raise ValueError("x")
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[Any] = []

    def work() -> None:
        with deferred_interrupt() as interrupted:
            seen.extend([interrupted(), signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, before]


# -------------------------------------------------------------------------- as a process


def test_ctrl_c_ends_a_run_whole_and_ready_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = start(tmp_path, *TINY, f"hydra.run.dir={path}")
    wait_for(has_lines(path, 3), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "fedmoe: interrupted"
    assert "Traceback" not in out + err
    assert summary(path)["status"] == "interrupted"

    for file in ("metrics.jsonl", "clients.jsonl", "insights.jsonl"):
        content = (path / file).read_text()
        assert content.endswith("\n")
        assert all(isinstance(json.loads(line), dict) for line in content.splitlines())
    written = all_lines(path)
    last = written["metrics.jsonl"][-1]["round"]
    assert len(written["metrics.jsonl"]) == last >= 3
    assert len(written["clients.jsonl"]) == len(written["insights.jsonl"]) == 5 * last
    assert summary(path)["rounds"] == last
    assert load_checkpoint(path).round == last
    assert len(list((path / "checkpoints").glob("*.json"))) == 1

    resume(TINY, path, f"rounds={last + 2}")
    run(TINY, tmp_path / "whole", f"rounds={last + 2}")
    assert all_lines(path) == all_lines(tmp_path / "whole")
    assert_same_checkpoint(path, tmp_path / "whole")


def test_a_second_ctrl_c_does_not_wait_for_the_round(tmp_path: Path) -> None:
    path = tmp_path / "run"
    endless = ["training.epochs=20000", "training.batch_size=4"]  # minutes a round
    process = start(tmp_path, *TINY, *endless, "tracking.progress=lines", f"hydra.run.dir={path}")
    wait_for((path / "config.json").exists, process)
    time.sleep(0.5)  # the round has begun, or this shows less than it could
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "fedmoe: interrupted"
    assert summary(path)["status"] == "interrupted"
    assert summary(path)["rounds"] == 0
    assert not (path / "metrics.jsonl").exists()


def test_ctrl_c_stops_a_sweep_and_still_prints_its_table(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    words = ["--multirun", *TINY, "seed=0,1", f"hydra.sweep.dir={sweep}"]
    process = start(tmp_path, *words)
    wait_for(has_lines(sweep / "0-seed-0", 2), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "fedmoe: interrupted"
    assert [path.name for path in sweep.iterdir() if path.is_dir()] == ["0-seed-0"]
    assert "interrupted" in out
    assert "interrupted" in (sweep / "sweep.md").read_text()
    assert summary(sweep / "0-seed-0")["status"] == "interrupted"
