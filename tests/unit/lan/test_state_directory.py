"""A client's private state on its disk."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from fedmoe.errors import RunError
from fedmoe.lan.state_directory import StateDirectory
from fedmoe.messages.arrays import from_record, to_record

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


def test_no_state_leaves_no_file(tmp_path: Path) -> None:
    StateDirectory(tmp_path, "abc", 0).save(1, RecordDict(), checkpoint_every=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "a" * 65])
def test_a_server_cannot_choose_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="not a plain name"):
        StateDirectory(tmp_path, name, 0)
