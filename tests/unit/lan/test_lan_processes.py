"""Processes that must not outlive the command that started them."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedmoe.lan.processes import Family
from fedmoe.lan.signals import Asked, raise_as

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")

# A child that deaf to SIGTERM starts another in a session of its own.
DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('deaf', flush=True); time.sleep(60)"
)
PARENT = (
    "import subprocess, sys, time;"
    f"subprocess.Popen([sys.executable, '-c', {DEAF!r}], start_new_session=True); time.sleep(60)"
)
HEAD = "from pathlib import Path; from fedmoe.lan.processes import Family; import sys, time;"
KILLED = (
    f"{HEAD} family = Family({{}}, Path(sys.argv[1]));"
    "print(family.start(['sleep', '60']).pid, flush=True); time.sleep(60)"
)


def wait_for(count: int, family: Family) -> None:
    deadline = time.monotonic() + 20.0
    while len(family.members()) != count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(family.members()) == count


def test_none_is_left_however_deaf_and_far(tmp_path: Path) -> None:
    with Family({"SAID": "so"}, tmp_path / "log") as family:
        process = family.start([sys.executable, "-c", PARENT])
        wait_for(2, family)
        deadline = time.monotonic() + 20.0
        while "deaf" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(family.members("SIG_IGN")) == 2 and not family.members("flwr")
        family.end(grace=0.3)
        assert process.returncode is not None
        assert family.members() == []
    assert family.environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert family.environment["SAID"] == "so"


def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = Path("/proc", parent.stdout.readline().strip())
        parent.kill()
    deadline = time.monotonic() + 10.0
    while child.exists() and "Z" not in _state(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not child.exists() or "Z" in _state(child)


def _state(process: Path) -> str:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_the_first_signal_says_how_to_end() -> None:
    asked = Asked()
    assert asked() is None
    asked.remember(signal.SIGTERM, None)
    asked.remember(signal.SIGINT, None)
    assert (asked(), asked.times) == (signal.SIGTERM, 2)
    with pytest.raises(SystemExit) as ended:
        raise_as(asked)
    assert ended.value.code == 143
    interrupted = Asked()
    interrupted.remember(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        raise_as(interrupted)
