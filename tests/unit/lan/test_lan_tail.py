"""Following files that another process writes."""

from pathlib import Path

import pytest

from fedmoe.lan.tail import Tail, warning_of


def test_whole_new_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    tail = Tail(path)
    assert tail.lines() == []
    with path.open("a") as stream:
        stream.write("one\ntwo\nthr")
    assert tail.lines() == ["one", "two"]
    with path.open("a") as stream:
        stream.write("ee\n")
    assert tail.lines() == ["three"]


def test_a_file_may_come_later_and_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.lines() == []
    path.write_text("one\ntwo\n")
    assert tail.lines() == ["one", "two"]
    path.write_text("one\n")
    assert tail.lines() == []
    path.write_text("one\ntwo again\n")
    assert tail.lines() == ["two again"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2026-01-01 00:00:00 - fedmoe.x - WARNING - round 3 is void", "round 3 is void"),
        ("2026-01-01 00:00:00 - fedmoe.x - ERROR - no", "no"),
        ("2026-01-01 00:00:00 - fedmoe.x - INFO - fine", None),
        ('{"level": "WARNING", "message": "void"}', "void"),
        ('{"level": "INFO", "message": "fine"}', None),
        ('{"level": ', None),
    ],
)
def test_warnings_are_told_apart(line: str, said: str | None) -> None:
    assert warning_of(line) == said
