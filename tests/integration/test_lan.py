"""Separate server and client processes on loopback: the same numbers, nothing left behind."""

import json
import logging
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from lan_runs import (
    KEYS,
    PATIENCE,
    REPOSITORY,
    SMALL,
    STAYING,
    Stage,
    assert_alike,
    in_process,
    wait_until,
    with_staying_clients,
)

from fedmoe.errors import ConfigError, DataError, RunError
from fedmoe.lan.bundle import CONNECTION, write_connection
from fedmoe.lan.node import Node
from fedmoe.lan.superlink import free_port

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="needs /proc to see what is left behind"
)
INTERRUPTED = 130


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def staying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    yield from with_staying_clients(tmp_path_factory.mktemp("lan"))


@pytest.mark.parametrize("experiment", ["fedavg", "insight", "fedmoe"])
def test_the_numbers_are_those_of_one_process(
    staying: Stage, tmp_path: Path, experiment: str
) -> None:
    """Three clients, five rounds, over TLS and with keys."""
    words = [f"+experiment={experiment}", *SMALL, "rounds=5"]
    secure = [f"runtime.keys={KEYS}", f"runtime.min_clients={STAYING}"]
    server = staying.server(*words, *secure, name=experiment)
    assert server.wait(PATIENCE) == 0, staying.log(experiment)
    assert_alike(staying.rounds(experiment), in_process(words, tmp_path / "own", STAYING))
    assert "round 5/5" in staying.log(experiment)
    left = staying.living()
    assert len(left) == STAYING and all("fedmoe.client" in words for words in left.values())
    private = (staying.folder / KEYS / "client-0").read_text().splitlines()[1:3]
    written = [path for path in (staying.folder / experiment).rglob("*") if path.is_file()]
    assert not any(line.encode() in path.read_bytes() for path in written for line in private)


def test_a_killed_server_goes_on_and_one_that_is_asked_to_end_ends_after_its_round(
    staying: Stage, tmp_path: Path
) -> None:
    words = ["+experiment=insight", *SMALL, "tracking.checkpoint_every=4"]
    secure = [f"runtime.keys={KEYS}", f"runtime.min_clients={STAYING}"]
    server = staying.server(*words, *secure, "rounds=1000", name="restarts")
    wait_until(lambda: len(staying.rounds("restarts")) >= 6, staying.log("restarts"))
    server.kill()  # two rounds or more after the last checkpoint
    wait_until(lambda: len(staying.living()) == STAYING, "the SuperLink ends with its server")
    before = len(staying.rounds("restarts"))

    path = staying.folder / "restarts"
    again = staying.server(f"resume={path}", *secure[:1], name="again")
    wait_until(lambda: len(staying.rounds("restarts")) > before, staying.log("again"))
    again.send_signal(signal.SIGINT)
    assert again.wait(PATIENCE) == INTERRUPTED
    assert f"go on with resume={path}" in staying.log("again")
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "interrupted" and summary["rounds"] > before
    assert (path / "checkpoints" / f"round-{summary['rounds']:05d}.json").exists()
    own = in_process([*words, f"rounds={summary['rounds']}"], tmp_path / "own", STAYING)
    assert_alike(staying.rounds("restarts"), own)
    assert len(staying.living()) == STAYING


def test_strangers_are_refused_and_clients_that_do_not_come_fail_the_run_in_one_line(
    stage: Stage,
) -> None:
    """Of two strangers one has a key that the server does not know, and the other none."""
    stage.make_keys(1, 2)
    words = [f"runtime.keys={KEYS}", "runtime.min_clients=1", "runtime.wait=4"]
    server = stage.server("+experiment=fedavg", *words)

    def take_part(key: int | None, wait: float) -> None:
        root = stage.folder / f"stranger-{key}"
        root.mkdir()
        Node(access=stage.access(key), client=0, root=root, data=None, wait=wait, stay=False).run()

    with ThreadPoolExecutor() as pool:
        unknown = pool.submit(take_part, 1, PATIENCE)
        plain = pool.submit(take_part, None, 1.0)
        with pytest.raises(ConfigError, match="it does not know this client's key"):
            unknown.result(PATIENCE)
        with pytest.raises(RunError, match="no server for 1 seconds"):
            plain.result(PATIENCE)
    assert server.wait(PATIENCE) == 1
    log = stage.log("server")
    assert "refused: a client at 127.0.0.1, whose key is not in runtime.keys" in log
    assert log.splitlines()[-1] == (
        "fedmoe: error: 0 of 1 clients came within 4 seconds (runtime.min_clients, runtime.wait); "
        "came: none"
    )
    summary = json.loads((stage.folder / "server" / "summary.json").read_text())
    assert summary["status"] == "failed" and "0 of 1 clients" in summary["reason"]
    assert not stage.living()


# ------------------------------------------------------------------- sites with their own tables

SITES = [
    "data=table", "data.features=[age,dose]", "data.target=outcome", "data.task=classification",
    "data.classes=[no,yes]", "model=linear", "training=sgd", "strategy=fedavg", "partition=iid",
]  # fmt: skip


def write_site(path: Path, seed: int, columns: str = "age,dose,outcome") -> Path:
    rng = np.random.default_rng(seed)
    lines = [columns]
    for _ in range(60):
        age, dose = rng.normal(50, 9), rng.normal(1, 0.5)
        lines.append(f"{age:.2f},{dose:.3f},{'yes' if (age - 50) / 9 + dose > 1 else 'no'}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_sites_train_on_tables_that_only_they_have(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedmoe.lan")
    names = ["age,dose,outcome", "age,dose,outcome", "age,weight,outcome"]
    first, second, broken = (
        write_site(stage.folder / f"{seed}.csv", seed, columns)
        for seed, columns in enumerate(names)
    )

    def site(table: Path) -> None:
        root = stage.folder / table.stem
        root.mkdir()
        Node(
            access=stage.access(), client=None, root=root, data=table, wait=PATIENCE, stay=False
        ).run()

    server = stage.server(*SITES, "rounds=3", name="run")
    with ThreadPoolExecutor() as pool:
        good = pool.submit(site, first)
        with pytest.raises(DataError, match=r"2\.csv: no column 'dose' \(from data\.features\)"):
            site(broken)
        site(second)
        good.result(PATIENCE)
    assert server.wait(PATIENCE) == 0, stage.log("run")
    assert caplog.text.count("the run is over (completed)") == 2
    last = stage.rounds("run")[-1]
    assert last["train"]["clients"] == 2 and last["test"]["global"]["accuracy"]["mean"] > 0.7
    assert not stage.living()


# ------------------------------------------------------------------------- Flower's own commands


def test_the_same_apps_run_under_flowers_own_commands(stage: Stage, tmp_path: Path) -> None:
    words = ["+experiment=insight", *SMALL, "rounds=1"]
    home = stage.folder / "home"
    write_connection(home, f"127.0.0.1:{stage.port}", None)
    stage.start("link", "flower-superlink", "--insecure", "--port", str(stage.port))
    stage.start(
        "node", "flower-supernode", "--insecure",
        "--superlink", f"127.0.0.1:{stage.port}", "--port", str(free_port()),
        "--node-config", "partition-id=0 num-partitions=1",
    )  # fmt: skip
    alone = ["runtime=lan", "runtime.min_clients=1", "partition.num_clients=1"]
    overrides = " ".join([*words, *alone, "tracking.plots=false"])
    wait_until(lambda: "Activated" in stage.log("link"), stage.log("link"))
    done = stage.start(
        "flwr", "flwr", "run", str(REPOSITORY), CONNECTION,
        "--run-config", f'overrides="{overrides}"',
    )  # fmt: skip
    assert done.wait(PATIENCE) == 0, stage.log("flwr")
    wait_until(lambda: list(stage.folder.glob("runs/*/*/summary.json")), stage.log("link"), 120.0)
    (summary,) = stage.folder.glob("runs/*/*/summary.json")
    folder = str(summary.parent.relative_to(stage.folder))
    assert_alike(stage.rounds(folder), in_process(words, tmp_path / "own", clients=1))


def test_no_server_is_open_to_other_machines_unless_it_is_asked_to_be(stage: Stage) -> None:
    server = stage.server("+experiment=fedavg", "runtime.host=0.0.0.0")
    assert server.wait(PATIENCE) == 2
    last = stage.log("server").splitlines()[-1]
    assert last.startswith("fedmoe: error: runtime.host=0.0.0.0: other machines could read along")
    assert "runtime.insecure=true" in last
