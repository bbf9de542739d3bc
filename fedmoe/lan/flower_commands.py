"""Flower's own command line, `flwr`, as a child that says many commands one after the other.

Each command of Flower's takes a second to start, and a server registers a key for each client,
submits a run, and asks how it goes. So one process waits for lines with words, and prints what
Flower's command prints, which is JSON, and a line that ends it.
"""

import contextlib
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from typing import Any

from fedmoe.errors import RunError
from fedmoe.lan.processes import Family

_END = b"\x1e\n"  # JSON holds no such character
_SECONDS = 60.0  # that one command may take


class FlowerCommands:
    """The child; its family ends it."""

    def __init__(self, family: Family) -> None:
        """Start it: it is ready in a second.

        Args:
            family: whose environment it has; `FLWR_HOME` says where its connections are.
        """
        self._process = family.start(
            [sys.executable, "-m", "fedmoe.lan.flower_commands"], piped=True
        )

    def __call__(self, *words: str) -> dict[str, Any]:
        """What a command says: `flwr WORDS --format json`.

        Raises:
            RunError: it says nothing in time, or that it failed.
        """
        failed = f"flwr {' '.join(words[:2])} failed"
        clock = threading.Timer(_SECONDS, self._process.kill)
        clock.start()
        try:
            text = self._said([*words, "--format", "json"])
        except BrokenPipeError as error:
            raise RunError(f"{failed}: its process has ended") from error
        finally:
            clock.cancel()
        told = next(_objects(text), None)
        if told is None:
            raise RunError(f"{failed}: {' '.join(text.split())[-300:] or 'it said nothing'}")
        if not told.get("success"):
            raise RunError(f"{failed}: {told.get('error-message', told)}")
        return told

    def _said(self, words: Sequence[str]) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(words).encode() + b"\n")
        stdin.flush()
        lines = []
        for line in stdout:
            if line == _END:
                break
            lines.append(line)
        return b"".join(lines).decode(errors="replace")


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, one after the other, with anything between."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            found, place = decoder.raw_decode(text, place)
            yield found
        except ValueError:
            place += 1
        place = text.find("{", place)


def main() -> None:
    """Say what the lines of the standard input hold, until it ends."""
    (command,) = entry_points(group="console_scripts", name="flwr")
    flwr = command.load()
    for line in sys.stdin:
        with contextlib.suppress(SystemExit):
            try:
                flwr(json.loads(line), standalone_mode=False)
            except Exception as error:  # Flower's own, for the eyes of a user
                told = {"success": False, "error-message": f"{type(error).__name__}: {error}"}
                sys.stdout.write(json.dumps(told))
        sys.stdout.write(f"\n{_END.decode()}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
