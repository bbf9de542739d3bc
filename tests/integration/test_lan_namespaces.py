"""Federations in network namespaces: without any network, and between separate addresses."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from lan_runs import PATIENCE, REPOSITORY, SMALL, assert_alike, in_process, wait_until
from namespaces import Network, RoomStage, lonely, skip_if_impossible
from witness import LOOKUP, WATCHING

from fedmoe.keys import make_keys

SERVER, CLIENTS = "10.77.0.1", ("10.77.0.11", "10.77.0.12")
CUT_SECONDS = 3.0  # longer ones by hand: python tests/integration/cut_link.py 15 45 90
ROUNDS = 12
CALLS_OUT = """
import contextlib, socket
with contextlib.suppress(OSError):
    socket.create_connection(("192.0.2.1", 443), timeout=0.1)
with contextlib.suppress(OSError):
    socket.getaddrinfo("fedmoe.example", 443)
"""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[RoomStage]:
    skip_if_impossible()
    stage = RoomStage(tmp_path)
    yield stage
    stage.close()


def test_a_federation_tries_to_reach_no_other_machine(stage: RoomStage) -> None:
    """Server, SuperLink and two clients with TLS and keys, where the one way out is watched."""
    make_keys(stage.folder / "keys", clients=2)
    with lonely() as stage.room:
        stage.start("witness", sys.executable, str(REPOSITORY / "tests/integration/witness.py"))
        wait_until(lambda: WATCHING in stage.log("witness"), stage.log("witness"))
        calling = stage.start(
            "caller", "env", "RES_OPTIONS=timeout:1 attempts:1", sys.executable, "-c", CALLS_OUT
        )
        assert calling.wait(PATIENCE) == 0
        wait_until(
            lambda: {"192.0.2.1:443", LOOKUP} <= set(stage.log("witness").splitlines()),
            f"seen: {stage.log('witness')}",
        )
        seen = stage.log("witness")
        server = stage.server(
            "+experiment=fedavg", *SMALL, "rounds=3", "runtime.keys=keys", name="run"
        )
        clients = [stage.client(number, "client.keys=keys") for number in range(2)]
        assert server.wait(PATIENCE) == 0, stage.log("run")
        assert [client.wait(PATIENCE) for client in clients] == [0, 0]
        assert len(stage.rounds("run")) == 3
        assert stage.log("witness") == seen


def test_over_a_network_that_fails_for_seconds_the_numbers_stay(
    stage: RoomStage, tmp_path: Path
) -> None:
    """Each process at its own address; one client's cable is cut in the middle of a round.

    Its prior and its head never leave it, and all its replies are waited for: what it had lost
    would show.
    """
    make_keys(stage.folder / "keys", addresses=[SERVER], clients=2)
    words = ["+experiment=insight", *SMALL, f"rounds={ROUNDS}"]
    keys = ["runtime.host=0.0.0.0", "runtime.keys=keys"]
    with closing(Network(SERVER, *CLIENTS)) as network:
        stage.room = network.rooms[0]
        server = stage.server(*words, *keys, name="run")
        clients = []
        for number, stage.room in enumerate(network.rooms[1:]):
            there = [f"runtime.server={SERVER}:{stage.port}", "client.keys=keys"]
            clients.append(stage.client(number, *there))
        wait_until(lambda: len(stage.rounds("run")) >= 2, stage.log("run"))
        network.cut(2)
        time.sleep(CUT_SECONDS)
        before = len(stage.rounds("run"))
        network.mend(2)
        assert before < ROUNDS, "the run was over before it was cut"
        assert server.wait(PATIENCE) == 0, stage.log("run")
        assert [client.wait(PATIENCE) for client in clients] == [0, 0]
    theirs = stage.rounds("run")
    assert max(line["seconds"] for line in theirs) > CUT_SECONDS / 2  # it was missed in a round
    assert_alike(theirs, in_process(words, tmp_path / "own", clients=2))


def test_where_there_can_be_no_networks_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_if_impossible()
    refuses = tmp_path / "ip"
    refuses.write_text("#!/bin/sh\necho 'RTNETLINK answers: Operation not permitted' >&2\nexit 2\n")
    refuses.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    reason = "ip link set lo up: RTNETLINK answers: Operation not permitted"
    with pytest.raises(pytest.skip.Exception, match=f"no networks of namespaces here: {reason}"):
        skip_if_impossible()
