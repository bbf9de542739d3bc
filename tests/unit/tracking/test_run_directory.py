import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from fedmoe.errors import RunError
from fedmoe.tracking.files import to_json, write_atomic
from fedmoe.tracking.run_directory import RunDirectory


def test_claims_of_one_path_get_folders_of_their_own(tmp_path: Path) -> None:
    claimed = [RunDirectory.claim(tmp_path / "runs" / "a").path.name for _ in range(3)]
    assert claimed == ["a", "a-2", "a-3"]


def test_simultaneous_claims_never_share(tmp_path: Path) -> None:
    names: list[str] = []
    start = threading.Barrier(8)

    def claim() -> None:
        start.wait()
        names.append(RunDirectory.claim(tmp_path / "run").path.name)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names) == ["run", *(f"run-{n}" for n in range(2, 9))]


def test_claim_takes_a_folder_that_hydra_made(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    assert RunDirectory.claim(tmp_path).path == tmp_path


def test_claim_reports_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot make the run directory"):
        RunDirectory.claim(tmp_path / "file")


@pytest.mark.parametrize(("name", "words"), [("absent", "no such"), ("", "not a run directory")])
def test_reopen_refuses_what_is_no_run(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(RunError, match=words):
        RunDirectory.reopen(tmp_path / name)


def test_reopened_runs_go_on_in_the_same_files(tmp_path: Path) -> None:
    with RunDirectory.claim(tmp_path) as run:
        run.append("metrics.jsonl", {"round": 1})
    with RunDirectory.reopen(tmp_path) as run:
        run.append("metrics.jsonl", {"round": 2})
        assert run.read_lines("metrics.jsonl") == [{"round": 1}, {"round": 2}]


def test_a_line_is_on_disk_before_the_file_is_closed(tmp_path: Path) -> None:
    with RunDirectory.claim(tmp_path) as run:
        run.append_many("clients.jsonl", [{"client": k} for k in range(3)])
        text = (tmp_path / "clients.jsonl").read_text()
    assert text == '{"client": 0}\n{"client": 1}\n{"client": 2}\n'


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    record = {
        "nan": float("nan"),
        "deep": [{"inf": np.float32("-inf")}, (1.5, np.float64("nan"))],
        "array": np.array([1.0, np.inf], dtype=np.float32),
        "count": np.int64(7),
        "flag": np.bool_(True),
        "path": Path("a") / "b",
        "none": None,
    }
    with RunDirectory.claim(tmp_path) as run:
        run.append("a.jsonl", record)
        run.write_json("a.json", record)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    expected = {
        "nan": None,
        "deep": [{"inf": None}, [1.5, None]],
        "array": [1.0, None],
        "count": 7,
        "flag": True,
        "path": os.path.join("a", "b"),  # noqa: PTH118
        "none": None,
    }
    for file in ("a.jsonl", "a.json"):
        assert json.loads((tmp_path / file).read_text(), parse_constant=refuse) == expected


def test_nothing_is_written_if_one_record_cannot_be(tmp_path: Path) -> None:
    with RunDirectory.claim(tmp_path) as run:
        with pytest.raises(TypeError, match="cannot write a set"):
            run.append_many("a.jsonl", [{"round": 1}, {"round": {1}}])
        assert run.read_lines("a.jsonl") == []


def test_torn_last_line_is_skipped_and_then_cut_off(tmp_path: Path) -> None:
    with RunDirectory.claim(tmp_path) as run:
        run.append("a.jsonl", {"round": 1})
    with (tmp_path / "a.jsonl").open("a") as stream:
        stream.write('{"round": 2, "lo')
    with RunDirectory.reopen(tmp_path) as run:
        assert run.read_lines("a.jsonl") == [{"round": 1}]
        run.append("a.jsonl", {"round": 3})
        assert run.read_lines("a.jsonl") == [{"round": 1}, {"round": 3}]


def test_a_line_is_torn_until_its_newline_is_there(tmp_path: Path) -> None:
    run = RunDirectory.claim(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"round": 1}')
    assert run.read_lines("a.jsonl") == []


@pytest.mark.parametrize("line", ["{oops", "[1]"])
def test_damage_elsewhere_is_reported_with_its_line(tmp_path: Path, line: str) -> None:
    run = RunDirectory.claim(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"round": 1}\n' + line + '\n{"round": 2}\n')
    with pytest.raises(RunError, match=r"a\.jsonl, line 2: not a JSON object"):
        run.read_lines("a.jsonl")


def test_truncate_drops_later_rounds_and_keeps_appending(tmp_path: Path) -> None:
    with RunDirectory.claim(tmp_path) as run:
        run.append_many("a.jsonl", [{"round": r, "x": 0.1 * r} for r in (1, 2, 2, 3, 4)])
        with (tmp_path / "a.jsonl").open("a") as stream:
            stream.write('{"round": 2')
        run.truncate("a.jsonl", 2)
        run.append("a.jsonl", {"round": 3})
        rounds = [line["round"] for line in run.read_lines("a.jsonl")]
        run.truncate("absent.jsonl", 2)
    assert rounds == [1, 2, 2, 3]
    assert not (tmp_path / "absent.jsonl").exists()


def test_write_atomic_keeps_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    path.write_bytes(b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_to_json_is_one_line_unless_indented() -> None:
    assert to_json({"a": [1, "x\ny"]}) == '{"a": [1, "x\\ny"]}'
    assert to_json({"a": 1}, indent=2) == '{\n  "a": 1\n}'
