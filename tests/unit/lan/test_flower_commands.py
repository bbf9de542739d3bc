"""Flower's commands, one after the other, by one child."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmoe.errors import RunError
from fedmoe.lan import flower_commands
from fedmoe.lan.flower_commands import FlowerCommands
from fedmoe.lan.processes import Family

# In place of Flower's: the first word says what it does.
STAND_IN = """
import json, sys
from fedmoe.lan import flower_commands
def flwr(words, standalone_mode):
    assert not standalone_mode
    if words[0] == "raises":
        raise ValueError("no such option")
    if words[0] == "ends":
        import os; os._exit(3)
    if words[0] == "hangs":
        import time; time.sleep(60)
    if words[0] == "mute":
        return
    print("a line before {")
    told = {"success": words[0] != "fails", "words": words, "error-message": "no run"}
    print(json.dumps(told, indent=1))
    sys.exit(1)
flower_commands.entry_points = lambda **_: [type("Entry", (), {"load": lambda self: flwr})()]
flower_commands.main()
"""


@pytest.fixture
def flwr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlowerCommands]:
    start = Family.start
    monkeypatch.setattr(
        Family,
        "start",
        lambda self, _, piped: start(self, [sys.executable, "-c", STAND_IN], piped=piped),
    )
    with Family({}, tmp_path / "log") as family:
        yield FlowerCommands(family)


def test_many_commands_are_answered_one_by_one(flwr: FlowerCommands) -> None:
    for name in ("one", "two"):
        told = flwr(name, 'with "quotes"\n and a line')
        assert told["words"] == [name, 'with "quotes"\n and a line', "--format", "json"]
    for name, said in {
        "fails": "flwr fails now failed: no run",
        "raises": "flwr raises now failed: ValueError: no such option",
        "mute": "flwr mute now failed: it said nothing",
    }.items():
        with pytest.raises(RunError, match=said):
            flwr(name, "now")
    assert flwr("three")["success"]
    with pytest.raises(RunError, match="flwr ends failed: it said nothing"):
        flwr("ends")
    flwr._process.wait()  # its last word is not yet its end
    with pytest.raises(RunError, match="its process has ended"):
        flwr("one")


def test_a_command_that_hangs_is_given_up(
    flwr: FlowerCommands, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert flwr("one")["success"]
    monkeypatch.setattr(flower_commands, "_SECONDS", 0.1)
    with pytest.raises(RunError, match="flwr hangs failed: it said nothing"):
        flwr("hangs")


def test_objects_are_found_between_other_words() -> None:
    text = f"one {json.dumps({'a': [1]})} two\n{json.dumps({'b': '{'})} {{broken"
    assert list(flower_commands._objects(text)) == [{"a": [1]}, {"b": "{"}]
