import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.errors import RunError
from fedmoe.tracking.files import lines_of, to_json, write_atomic
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


# ---------------------------------------------------------------------------------------- columns

AWKWARD: dict[str, list[Any]] = {
    "numbers": [1, -2.5, 10**30, 1e-320, -0.0, 0.1 + 0.2],
    "whole": [0, 1, -1, 2**63, 5, 6],
    "some missing": [None, 1.5, None, 2, None, -3],
    "nothing": [None] * 6,
    "not finite": [1.0, float("nan"), float("inf"), float("-inf"), None, 2.0],
    "all nan": [float("nan")] * 6,
    "text": ['"', "a, b", "{}[]", "line\nbreak\r\u2028", "\\ é \U0001f600", "null"],
    "flags": [True, False, True, None, False, True],
    "flags and numbers": [True, 1, 0, False, 1.0, None],
    "mixed": ["1, 2", 1, None, "", float("nan"), [1, float("inf")]],
    "scalars of NumPy": [np.float64(1.5), np.float32("nan"), np.int64(3), np.bool_(True), 1, None],
    "nested": [[1, 2], {"a": ", "}, [], {}, [[None]], ["x, y"]],
    'a "key", {odd}\n': [1, 2, 3, 4, 5, 6],
}


def line_by_line(columns: dict[str, list[Any]]) -> list[str]:
    """The oracle: each line encoded by itself."""
    return [
        to_json(dict(zip(columns, line, strict=True)))
        for line in zip(*columns.values(), strict=True)
    ]


@pytest.mark.parametrize("name", AWKWARD)
def test_columns_are_the_lines_that_json_writes(name: str) -> None:
    alone = {name: AWKWARD[name]}
    assert lines_of(alone) == line_by_line(alone)
    for length in (0, 1):
        short = {name: AWKWARD[name][:length]}
        assert lines_of(short) == line_by_line(short)
    two = {"round": [7] * 6, **alone, "status": ["ok"] * 6}
    assert lines_of(two) == line_by_line(two)
    assert [json.loads(line)["round"] for line in lines_of(two)] == [7] * 6


def test_all_kinds_of_columns_side_by_side() -> None:
    assert lines_of(AWKWARD) == line_by_line(AWKWARD)
    assert lines_of({}) == lines_of({"a": [], "b": []}) == []
    assert lines_of({"a": (1, 2)}) == ['{"a": 1}', '{"a": 2}']


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(alphabet='a",: {}[]\n\\é')
)


@settings(max_examples=50)
@given(st.integers(0, 5), st.data())
def test_any_columns_are_the_lines_that_json_writes(length: int, data: st.DataObject) -> None:
    of_one_kind = st.sampled_from([st.integers(), st.floats(), VALUES, st.none()])
    columns = {
        name: data.draw(st.lists(data.draw(of_one_kind), min_size=length, max_size=length))
        for name in data.draw(st.lists(st.text(max_size=3), min_size=1, max_size=4, unique=True))
    }
    assert lines_of(columns) == line_by_line(columns)


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        lines_of({"a": [1, 2], "b": [1]})


def test_columns_are_appended_as_lines(tmp_path: Path) -> None:
    with RunDirectory.claim(tmp_path) as run:
        run.append("a.jsonl", {"round": 1})
        run.append_columns("a.jsonl", {"round": [2, 2], "loss": [0.5, float("nan")]})
        run.append_columns("a.jsonl", {"round": [], "loss": []})
        with pytest.raises(TypeError, match="cannot write a set"):
            run.append_columns("a.jsonl", {"round": [3, 3], "loss": [1.0, {1}]})
        text = (tmp_path / "a.jsonl").read_text()
    assert text == ('{"round": 1}\n{"round": 2, "loss": 0.5}\n{"round": 2, "loss": null}\n')
