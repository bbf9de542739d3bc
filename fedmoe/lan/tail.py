"""Following files that another process writes line by line."""

import json
from pathlib import Path
from typing import Any


class Tail:
    """New lines of a file that grows, whole ones only, beyond those that it has already."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def lines(self) -> list[str]:
        """What was written since the last call."""
        try:
            size = self._path.stat().st_size
            self._offset = min(self._offset, size)  # a run that is resumed cuts its records
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                new = stream.read()
        except OSError:  # not there yet
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode(errors="replace").splitlines()


def warning_of(line: str) -> str | None:
    """The message of a line of `run.log`, text or JSON, if it is a warning or worse."""
    if line.startswith("{"):
        try:
            told: dict[str, Any] = json.loads(line)
        except ValueError:
            return None
        return str(told.get("message")) if told.get("level") in ("WARNING", "ERROR") else None
    _, found, message = line.partition(" - WARNING - ")
    if not found:
        _, found, message = line.partition(" - ERROR - ")
    return message if found else None
