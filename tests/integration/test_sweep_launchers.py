"""Sweeps whose jobs run in processes of their own: the same results, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from federation_runs import MIXTURE, REGRESSION

HANG_SECONDS = 120.0  # only a test that hangs gets there
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "ray": [
        "hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.init.include_dashboard=false",
    ],
}  # fmt: skip
# Two of these four jobs fail, and only when they run: there are 120 samples.
JOBS = [
    *MIXTURE, "partition=dirichlet", "partition.num_clients=4", "partition.min_samples=1,1000",
    "seed=0,1", "model=linear", "rounds=2",
]  # fmt: skip


def start(cwd: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedmoe.simulate", "--multirun", *words],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if not k.startswith("FED_MOE_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def without_times(value: Any) -> Any:
    """What must be equal from run to run."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "sweep")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def results(sweep: Path) -> dict[str, Any]:
    """Every job's summary and records, and the sweep's own."""
    found = {"sweep.json": json.loads((sweep / "sweep.json").read_text())}
    for job in (path for path in sweep.iterdir() if path.is_dir()):
        found[f"{job.name}/summary"] = json.loads((job / "summary.json").read_text())
        for file in ("metrics.jsonl", "clients.jsonl"):
            if (job / file).exists():
                lines = (job / file).read_text().splitlines()
                found[f"{job.name}/{file}"] = [json.loads(line) for line in lines]
    return {name: without_times(value) for name, value in found.items()}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_side_by_side_give_what_they_give_one_after_the_other(
    launcher: str, tmp_path: Path
) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    serial, parallel = tmp_path / "serial", tmp_path / "parallel"
    codes, tables = [], []
    for sweep, extra in ((serial, []), (parallel, LAUNCHERS[launcher])):
        process = start(tmp_path, *JOBS, f"hydra.sweep.dir={sweep}", *extra)
        out, err = process.communicate(timeout=HANG_SECONDS)
        assert "fedmoe: error: a job of the sweep failed; see above" in err, err
        codes.append(process.returncode)
        tables.append("4 jobs, last evaluated round, test parts" in out)
    assert codes == [2, 2]
    assert tables == [True, True]
    found = results(parallel)
    assert sum(name.endswith("/metrics.jsonl") for name in found) == 2
    assert found == results(serial)


def living(session: int) -> list[str]:
    """The processes of a session that are not just waiting to be reaped."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = file.read_text().rpartition(")")
        except OSError:
            continue  # ended meanwhile
        state, _, _, of_session = rest.split()[:4]
        if int(of_session) == session and state != "Z":
            found.append(name)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_ctrl_c_leaves_no_process_behind(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = tmp_path / "sweep"
    words = [*REGRESSION, "rounds=1000000", "seed=0,1,2", f"hydra.sweep.dir={sweep}"]
    process = start(tmp_path, *words, *LAUNCHERS["joblib"])
    deadline = time.monotonic() + HANG_SECONDS
    while len(list(sweep.glob("*/metrics.jsonl"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(living(process.pid)) >= 3
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "fedmoe: interrupted"
    begun = sum(path.is_dir() for path in sweep.glob("[0-9]*"))  # a third may just have, or not
    assert begun >= 2 and f"{begun} jobs, last evaluated round" in out
    while left := living(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
