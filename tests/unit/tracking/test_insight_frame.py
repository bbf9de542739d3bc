"""A run's insights as a pandas frame."""

import sys
from pathlib import Path
from typing import Any

import pytest

import fedmoe
from fedmoe.errors import RunError
from fedmoe.tracking import RunDirectory, insights_frame


def run_with(tmp_path: Path, records: list[dict[str, Any]]) -> Path:
    with RunDirectory.claim(tmp_path / "run") as directory:
        directory.append_many("insights.jsonl", records)
        return directory.path


def test_a_row_for_each_insight(tmp_path: Path) -> None:
    first = {"client_id": 3, "round": 1, "final_loss": 0.5, "payload_bytes": {"a": 40, "b": 8}}
    later: dict[str, Any] = {"client_id": 3, "round": 2, "final_loss": None, "payload_bytes": {}}
    other = {"client_id": 4, "round": 2, "final_loss": 0.25, "payload_bytes": {"c": 4}}
    frame = insights_frame(run_with(tmp_path, [first, later, other]))
    sizes = ["payload_bytes", "payload_bytes_a", "payload_bytes_b", "payload_bytes_c"]
    assert list(frame.columns) == ["round", "client_id", "final_loss", *sizes]
    assert frame["client_id"].tolist() == [3, 3, 4]
    assert frame[sizes].to_numpy().tolist() == [[48, 40, 8, 0], [0, 0, 0, 0], [4, 0, 0, 4]]
    assert frame["final_loss"].isna().tolist() == [False, True, False]
    assert frame.groupby("round")["payload_bytes"].sum().to_dict() == {1: 48, 2: 4}


def test_a_run_without_insights_has_no_rows(tmp_path: Path) -> None:
    frame = insights_frame(str(run_with(tmp_path, [])))
    assert len(frame) == 0
    assert {"round", "client_id", "payload_bytes"} <= set(frame.columns)


def test_there_must_be_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run directory"):
        insights_frame(tmp_path / "nowhere")


def test_pandas_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(RunError, match=r"insights_frame needs pandas: pip install 'fedmoe\[fram"):
        insights_frame(tmp_path)


def test_it_is_at_the_top() -> None:
    assert fedmoe.insights_frame is insights_frame
