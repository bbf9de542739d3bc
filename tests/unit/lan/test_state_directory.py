"""A client's private state on its disk."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from fedmoe.errors import RunError
from fedmoe.lan import state_directory
from fedmoe.lan.state_directory import StateDirectory
from fedmoe.messages.arrays import from_record, to_record
from fedmoe.tracking import save_checkpoint

EVER = float("inf")


def state(value: float) -> RecordDict:
    arrays = {"layer/w": np.full((2, 3), value, np.float32), "b": np.array(float(value))}
    return RecordDict({"model": to_record(arrays), "prior/2": to_record({"n": np.array([7])})})


def value(kept: RecordDict) -> float:
    return float(from_record(kept.array_records["model"])["b"])


def test_the_newest_state_before_a_round_is_found(tmp_path: Path) -> None:
    kept = StateDirectory(tmp_path, "abc", 3)
    assert kept.load(EVER) == (0, RecordDict())
    for number in range(1, 20):
        kept.save(number, state(number), checkpoint_every=4)
    found, loaded = kept.load(EVER)
    assert found == 19 and loaded.object_id == state(19.0).object_id
    # The last two rounds, and the last three at which a server writes a checkpoint.
    befores = (19, 18, 17, 16, 12, 9, 8)
    assert [kept.load(before)[0] for before in befores] == [18, 16, 16, 12, 8, 8, 0]
    assert value(kept.load(12)[1]) == 8.0
    assert StateDirectory(tmp_path, "abc", 2).load(EVER)[0] == 0
    assert StateDirectory(tmp_path, "abd", 3).load(EVER)[0] == 0


def test_a_history_that_was_rolled_back_is_gone(tmp_path: Path) -> None:
    kept = StateDirectory(tmp_path, "abc", 0)
    for number in (1, 2, 3, 4):
        kept.save(number, state(number), checkpoint_every=2)
    kept.save(3, state(30), checkpoint_every=2)
    assert kept.load(4)[0] == 3 and value(kept.load(4)[1]) == 30.0


def test_a_round_that_did_not_fit_on_the_disk_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two copies has been written by then; it is not what the client goes on from."""
    kept = StateDirectory(tmp_path, "abc", 0)
    kept.save(1, state(1), checkpoint_every=2)
    calls = []

    def full(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_checkpoint(*args)

    monkeypatch.setattr(state_directory, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space"):
        kept.save(2, state(2), checkpoint_every=2)
    assert StateDirectory(tmp_path, "abc", 0).load(EVER)[0] == 1
    assert not list(tmp_path.rglob("round-00002*"))
    kept.save(2, state(2), checkpoint_every=2)
    assert value(kept.load(EVER)[1]) == 2.0


def test_no_state_is_kept_once(tmp_path: Path) -> None:
    """Whoever has no private state is known again all the same, and writes no more."""
    kept = StateDirectory(tmp_path, "abc", 4)
    assert StateDirectory.clients(tmp_path, "abc") == []
    for number in (1, 2):
        kept.save(number, RecordDict(), checkpoint_every=1)
    assert kept.load(EVER) == (1, RecordDict())
    assert StateDirectory.clients(tmp_path, "abc") == [4]


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "a" * 65])
def test_a_server_cannot_choose_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="not a plain name"):
        StateDirectory(tmp_path, name, 0)
