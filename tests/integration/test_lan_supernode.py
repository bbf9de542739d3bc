"""A client that falls back on Flower's own SuperNode, beside one of ours, with TLS and keys."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from lan_runs import KEYS, PATIENCE, SMALL, Stage, assert_alike, in_process

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="needs /proc to see what is left behind"
)
ENDED = 128 + signal.SIGTERM


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def test_a_supernode_gives_the_numbers_of_one_process_and_ends_when_asked_to(
    stage: Stage, tmp_path: Path
) -> None:
    """The second round needs what each client keeps for itself of the first."""
    stage.make_keys(2, 2)
    words = ["+experiment=insight", *SMALL, "rounds=2"]
    server = stage.server(*words, f"runtime.keys={KEYS}", "runtime.min_clients=2", name="run")
    ours = stage.client(0, f"client.keys={KEYS}")
    fallback = stage.client(1, f"client.keys={KEYS}", "client.mode=supernode")
    assert server.wait(PATIENCE) == 0, stage.log("run") + stage.log("client1")
    assert ours.wait(PATIENCE) == 0, stage.log("client0")
    assert_alike(stage.rounds("run"), in_process(words, tmp_path / "own", clients=2))
    assert "a SuperNode, see" in stage.log("client1")
    assert list((stage.folder / "state1").glob("**/*.safetensors")), "private state is kept"

    assert fallback.poll() is None, "it waits for the next server"
    fallback.send_signal(signal.SIGTERM)
    assert fallback.wait(PATIENCE) == ENDED
    assert not stage.living()
