"""Separate server and client processes on loopback: the same numbers, nothing left behind."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lan_runs import PATIENCE, REPOSITORY, Stage, free_port, wait_until

from fedmoe.config import load_config
from fedmoe.keys import make_keys
from fedmoe.lan.bundle import CONNECTION, write_connection
from fedmoe.simulations import run_experiment

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="needs /proc to see what is left behind"
)
CLIENTS = 3
SMALL = ["data=digits", "training=sgd", "data.validation_fraction=0.1", "rounds=3"]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def staying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Three clients that wait for one server after another."""
    stage = Stage(tmp_path_factory.mktemp("lan"))
    for number in range(CLIENTS):
        stage.client(number, "client.stay=true")
    yield stage
    stage.close()


def in_process(words: list[str], folder: Path, clients: int = CLIENTS) -> list[dict[str, Any]]:
    config = load_config(
        [*words, f"partition.num_clients={clients}", "tracking.progress=none"],
        tracking={"plots": False},
    )
    run_experiment(config, folder)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_alike(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> None:
    """All that is no time is equal, up to the order in which floats are summed.

    Less goes down in all, since evaluations ride along with training.
    """
    assert len(theirs) == len(ours)
    theirs_down, ours_down = (sum(one["bytes"].pop("down") for one in r) for r in (theirs, ours))
    assert theirs_down <= ours_down
    for their, our in zip(theirs, ours, strict=True):
        for record in (their, our):
            record.pop("seconds", None)
        for key in ("round", "missing", "bytes"):
            assert their[key] == our[key]
        for key in ("train", "validation", "test"):
            assert flat(their[key]) == pytest.approx(flat(our[key]), abs=1e-5)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {} if value is None else {name: value}
    return {k: v for key, one in value.items() for k, v in flat(one, f"{name}.{key}").items()}


@pytest.mark.parametrize("experiment", ["fedavg", "insight", "fedmoe"])
def test_the_numbers_are_those_of_one_process(
    staying: Stage, tmp_path: Path, experiment: str
) -> None:
    words = [f"+experiment={experiment}", *SMALL]
    server = staying.server(*words, f"runtime.min_clients={CLIENTS}", name=experiment)
    assert server.wait(PATIENCE) == 0, staying.log(experiment)
    assert_alike(staying.rounds(experiment), in_process(words, tmp_path / "own"))
    assert "round 3/3" in staying.log(experiment)
    left = staying.living()
    assert len(left) == CLIENTS and all("fedmoe.client" in words for words in left.values())


def test_clients_that_do_not_come_fail_the_run_in_one_line(stage: Stage) -> None:
    server = stage.server("+experiment=fedavg", "runtime.wait=1")
    assert server.wait(PATIENCE) == 1
    assert stage.log("server").splitlines()[-1] == (
        "fedmoe: error: 0 of 2 clients came within 1 seconds (runtime.min_clients, runtime.wait); "
        "came: none"
    )
    summary = json.loads((stage.folder / "server" / "summary.json").read_text())
    assert summary["status"] == "failed" and "0 of 2 clients" in summary["reason"]
    assert not stage.living()


def test_a_killed_server_goes_on_with_the_same_clients(stage: Stage, tmp_path: Path) -> None:
    words = ["+experiment=insight", *SMALL[:-1], "rounds=12", "tracking.checkpoint_every=4"]
    server = stage.server(*words, name="run")
    clients = [stage.client(number) for number in range(2)]
    wait_until(lambda: len(stage.rounds("run")) >= 6, stage.log("run"))
    server.kill()  # two rounds or more after the last checkpoint
    wait_until(lambda: len(stage.living()) == len(clients), "the SuperLink ends with its server")

    again = stage.server(f"resume={stage.folder / 'run'}", name="again")
    assert again.wait(PATIENCE) == 0, stage.log("again")
    assert [client.wait(PATIENCE) for client in clients] == [0, 0]  # they were told farewell
    assert_alike(stage.rounds("run"), in_process(words, tmp_path / "own", clients=2))
    assert not stage.living()


def test_a_client_that_is_started_again_has_its_state(stage: Stage) -> None:
    server = stage.server("+experiment=local", *SMALL[:-1], "rounds=1000", name="run")
    first, second = (stage.client(number) for number in range(2))
    wait_until(lambda: len(stage.rounds("run")) >= 2, stage.log("run"))
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE) == 128 + signal.SIGTERM
    before = losses(stage, client=0)
    again = stage.client(0)
    wait_until(lambda: len(losses(stage, client=0)) > len(before), stage.log("client0"))
    server.send_signal(signal.SIGTERM)
    assert server.wait(PATIENCE) == 128 + signal.SIGTERM
    assert {line["missing"] for line in stage.rounds("run")} == {0, 1}
    # What it trains never leaves it, so that a fresh start would show as the first loss again.
    assert losses(stage, client=0)[len(before)] < before[-1] < before[0]
    for client in (second, again):
        client.kill()


def losses(stage: Stage, client: int) -> list[float]:
    """Of one client, in the rounds in which it trained."""
    text = (stage.folder / "run" / "clients.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [one["loss"] for one in lines if one["client"] == client and one["status"] == "ok"]


def test_a_server_that_is_asked_to_end_ends_after_its_round(stage: Stage) -> None:
    server = stage.server("+experiment=fedavg", "rounds=1000", "runtime.min_clients=1", name="run")
    client = stage.client(0)
    wait_until(lambda: stage.rounds("run"), stage.log("run"))
    server.send_signal(signal.SIGINT)
    assert server.wait(PATIENCE) == 130
    assert "go on with resume=" in stage.log("run")
    summary = json.loads((stage.folder / "run" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert (stage.folder / "run" / "checkpoints" / f"round-{summary['rounds']:05d}.json").exists()
    client.send_signal(signal.SIGINT)
    assert client.wait(PATIENCE) == 130
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


def test_sites_train_on_tables_that_only_they_have(stage: Stage) -> None:
    first = write_site(stage.folder / "first.csv", 1)
    second = write_site(stage.folder / "second.csv", 2)
    broken = write_site(stage.folder / "broken.csv", 3, "age,weight,outcome")
    server = stage.server(*SITES, "rounds=3", name="run")
    clients = [stage.client(0, f"client.data={first}")]
    refused = stage.client(1, f"client.data={broken}")
    assert refused.wait(PATIENCE) == 2
    assert "broken.csv: no column 'dose' (from data.features)" in stage.log("client1")
    clients.append(stage.client(1, f"client.data={second}"))
    assert server.wait(PATIENCE) == 0, stage.log("run")
    assert [client.wait(PATIENCE) for client in clients] == [0, 0]
    last = stage.rounds("run")[-1]
    assert last["train"]["clients"] == 2 and last["test"]["global"]["accuracy"]["mean"] > 0.7
    assert not stage.living()


# ------------------------------------------------------------------------- Flower's own commands


def test_the_same_apps_run_under_flowers_own_commands(stage: Stage, tmp_path: Path) -> None:
    words = ["+experiment=insight", *SMALL[:-1], "rounds=1"]
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


def test_with_keys_strangers_are_kept_out_and_the_numbers_stay(
    stage: Stage, tmp_path: Path
) -> None:
    """TLS and a key for each client; one whose key the server does not know, and one without."""
    make_keys(stage.folder / "keys", clients=2)
    make_keys(stage.folder / "others", clients=1)
    (stage.folder / "others" / "ca.crt").write_bytes(
        (stage.folder / "keys" / "ca.crt").read_bytes()
    )
    words = ["+experiment=insight", *SMALL]
    strangers = [stage.client(0, "client.keys=others"), stage.client(1)]
    server = stage.server(*words, "runtime.keys=keys", "runtime.min_clients=2", name="run")
    own = [stage.client(number, "client.keys=keys") for number in range(2)]
    assert server.wait(PATIENCE) == 0, stage.log("run")
    assert [client.wait(PATIENCE) for client in own] == [0, 0]
    assert all(stranger.poll() is None for stranger in strangers)  # they still try
    assert_alike(stage.rounds("run"), in_process(words, tmp_path / "own", clients=2))
    private = list((stage.folder / "keys" / "client-0").read_text().splitlines()[1:3])
    logged = "".join(path.read_text() for path in (stage.folder / "run").glob("*.log"))
    assert not any(line in logged for line in private)


def test_no_server_is_open_to_other_machines_unless_it_is_asked_to_be(stage: Stage) -> None:
    server = stage.server("+experiment=fedavg", "runtime.host=0.0.0.0")
    assert server.wait(PATIENCE) == 2
    last = stage.log("server").splitlines()[-1]
    assert last.startswith("fedmoe: error: runtime.host=0.0.0.0: other machines could read along")
    assert "runtime.insecure=true" in last
