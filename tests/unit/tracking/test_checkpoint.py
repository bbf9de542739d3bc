import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmoe.errors import RunError
from fedmoe.tracking import checkpoint
from fedmoe.tracking.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "float32": np.array([[0.1, -0.0, np.nan], [np.inf, 1e-45, 3.0]], dtype=np.float32),
    "float64": np.array([math.pi, 5e-324]),
    "int64": np.array([-(2**63), 2**63 - 1]),
    "bool": np.array([True, False, True]),
    "scalar": np.array(7.25),
    "empty": np.zeros((3, 0), dtype=np.float32),
    "strided": np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::3],
    "transposed": np.arange(6, dtype=np.int64).reshape(2, 3).T,
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def save_rounds(folder: Path, *rounds: int) -> None:
    for number in rounds:
        save_checkpoint(folder, number, {"w": np.full(3, number, np.float32)}, {"at": number})


def test_arrays_come_back_bit_for_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 12, ARRAYS, {})
    loaded = load_checkpoint(tmp_path).arrays
    assert loaded.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape), name
        assert loaded[name].tobytes() == array.tobytes(), name
        assert loaded[name].flags.writeable, name


def test_state_comes_back_exactly(tmp_path: Path) -> None:
    state = {"best": -math.inf, "nan": math.nan, "loss": 0.1 + 0.2, "waits": [1, None, "x"]}
    save_checkpoint(tmp_path, 3, {}, state)
    loaded = load_checkpoint(tmp_path)
    assert loaded.round == 3
    assert math.isnan(loaded.state.pop("nan"))
    assert loaded.state == {"best": -math.inf, "loss": 0.1 + 0.2, "waits": [1, None, "x"]}


def test_the_last_two_rounds_are_kept(tmp_path: Path) -> None:
    save_rounds(tmp_path, 5, 99_999, 100_000)
    assert names(tmp_path) == [
        "round-100000.json",
        "round-100000.safetensors",
        "round-99999.json",
        "round-99999.safetensors",
    ]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.name == "round-100000.json"
    assert load_checkpoint(tmp_path).round == 100_000


def test_rounds_that_were_rolled_back_are_removed(tmp_path: Path) -> None:
    save_rounds(tmp_path, 10, 20, 15)
    assert [name for name in names(tmp_path) if name.endswith("json")] == [
        "round-00010.json",
        "round-00015.json",
    ]


@pytest.mark.parametrize("crash_at", [1, 2])
@pytest.mark.parametrize("number", [4, 8])
def test_a_crash_while_writing_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int, number: int
) -> None:
    save_rounds(tmp_path, 2, 4)
    calls = []

    def crash(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) == crash_at:
            raise KeyboardInterrupt
        path.write_bytes(content)

    monkeypatch.setattr(checkpoint, "write_atomic", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, number, {"w": np.zeros(9)}, {"at": "new"})
    loaded = load_checkpoint(tmp_path)
    before = 4 if number == 8 else 2
    assert (loaded.round, loaded.state) == (before, {"at": before})


def flip_a_bit(folder: Path) -> None:
    path = folder / "checkpoints" / "round-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def tear_the_manifest(folder: Path) -> None:
    path = folder / "checkpoints" / "round-00002.json"
    path.write_text(path.read_text()[:-9])


def lose_a_key(folder: Path) -> None:
    path = folder / "checkpoints" / "round-00002.json"
    manifest = json.loads(path.read_text())
    del manifest["state"]
    path.write_text(json.dumps(manifest))


def lose_the_arrays(folder: Path) -> None:
    (folder / "checkpoints" / "round-00002.safetensors").unlink()


DAMAGES = [flip_a_bit, tear_the_manifest, lose_a_key, lose_the_arrays]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_in_one_line(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    save_rounds(tmp_path, 2)
    damage(tmp_path)
    with pytest.raises(RunError, match="damaged checkpoint") as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_stands_in_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    save_rounds(tmp_path, 1, 2)
    damage(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = load_checkpoint(tmp_path)
    assert (loaded.round, loaded.arrays["w"].tolist()) == (1, [1.0, 1.0, 1.0])
    assert "round-00002.json" in caplog.text
    assert "going back to round 1" in caplog.text


def test_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    with pytest.raises(RunError, match="no checkpoint in"):
        load_checkpoint(tmp_path)
