"""The folder that holds everything one run leaves behind."""

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fedmoe.errors import RunError
from fedmoe.tracking.files import lines_of, to_json, write_atomic

if TYPE_CHECKING:
    from fedmoe.schema import ExperimentConfig

MARKER = "RUN"
_MARKER_TEXT = "This folder belongs to one run of fedmoe; another run takes another folder.\n"


class RunDirectory:
    """A run's folder: JSON lines that grow with the run, and JSON files that are replaced whole.

    Made by `claim` or `reopen`; a context manager that closes its files. One process, one
    thread writes to it. However a run ends, the worst damage is a torn last line of a `.jsonl`
    file, which `read_lines` skips and the next append removes.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: dict[str, FileIO] = {}

    @classmethod
    def claim(cls, path: Path) -> Self:
        """Take a folder for a new run; if another run has it, take `path-2`, `path-3`, ...

        The folder may exist already and hold other files (Hydra makes it beforehand). Two
        processes that claim the same path at once get different folders.

        Raises:
            RunError: if the folder cannot be made or written to.
        """
        candidates = itertools.chain(
            [path], (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
        )
        for candidate in candidates:
            try:
                candidate.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RunError(f"cannot make the run directory {candidate}: {error}") from error
            try:
                with (candidate / MARKER).open("x", encoding="utf-8") as stream:
                    stream.write(_MARKER_TEXT)
            except FileExistsError:
                continue
            except OSError as error:
                raise RunError(f"cannot write to {candidate}: {error}") from error
            return cls(candidate)
        raise AssertionError("the candidates never end")

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Open an earlier run's folder, to continue it.

        Raises:
            RunError: if it is not one.
        """
        if not path.is_dir():
            raise RunError(f"no such run directory: {path}")
        if not (path / MARKER).is_file():
            raise RunError(f"not a run directory (it has no file {MARKER}): {path}")
        return cls(path)

    def append(self, file: str, record: Mapping[str, Any]) -> None:
        """Add one line to a `.jsonl` file; numbers that are not finite become `null`."""
        self.append_many(file, [record])

    def append_many(self, file: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Add one line per record, handed to the operating system in one piece.

        Raises:
            TypeError: if a record holds what JSON cannot; nothing is written then.
            OSError: if the disk refuses.
        """
        self._append(file, [to_json(record) for record in records])

    def append_columns(self, file: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Add one line per entry of the columns, which are of one length: fast where many are.

        Raises:
            As `append_many`.
        """
        self._append(file, lines_of(columns))

    def _append(self, file: str, lines: Sequence[str]) -> None:
        content = "".join(line + "\n" for line in lines).encode()
        stream = self._stream(file)
        rest = memoryview(content)
        while rest:
            rest = rest[stream.write(rest) :]

    def write_json(self, file: str, value: Any) -> None:
        """Replace a JSON file as a whole; see `to_json` for what it may hold."""
        write_atomic(self.path / file, (to_json(value, indent=2) + "\n").encode())

    def read_lines(self, file: str) -> list[dict[str, Any]]:
        """The records of a `.jsonl` file; none if there is no such file.

        A last line without its newline was torn when the run was cut off, and is left out.

        Raises:
            RunError: if a whole line is not a JSON object: the file was changed by hand.
        """
        path = self.path / file
        if not path.exists():
            return []
        records = []
        for number, line in enumerate(_whole_lines(path.read_bytes()), start=1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise RunError(f"{path}, line {number}: not a JSON object")
            records.append(record)
        return records

    def truncate(self, file: str, last_round: int) -> None:
        """Drop the lines of later rounds, and a torn last line, before a run is continued.

        Args:
            file: a `.jsonl` file; it need not exist. A record without `round` is kept.
            last_round: the last round to keep.

        Raises:
            RunError: if a line cannot be read.
        """
        path = self.path / file
        if not path.exists():
            return
        if stream := self._open.pop(file, None):
            stream.close()
        kept = [record for record in self.read_lines(file) if record.get("round", 0) <= last_round]
        write_atomic(path, "".join(to_json(record) + "\n" for record in kept).encode())

    def close(self) -> None:
        """Close the files; a later append opens them again."""
        for stream in self._open.values():
            stream.close()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _stream(self, file: str) -> FileIO:
        """The open file, unbuffered: what is written survives the process."""
        if file not in self._open:
            path = self.path / file
            _cut_torn_line(path)
            self._open[file] = FileIO(path, "a")
        return self._open[file]


def open_run_directory(config: "ExperimentConfig", path: Path | None) -> RunDirectory:
    """The folder of a run: a new one, or that of the run which is resumed.

    Args:
        config: of the run.
        path: of a new one; by default below the working directory, as `fedmoe-simulate` has it.

    Raises:
        RunError: the folder cannot be made, or there is no such run to resume.
    """
    if config.resume is not None:
        return RunDirectory.reopen(Path(config.resume))
    started = datetime.now()  # a folder's name, in the user's own time
    usual = Path("runs", f"{started:%Y-%m-%d}", f"{started:%H-%M-%S}-{config.name}")
    return RunDirectory.claim((path or usual).absolute())


def _whole_lines(content: bytes) -> list[bytes]:
    """The lines that have their newline."""
    return content.split(b"\n")[:-1]


def _cut_torn_line(path: Path) -> None:
    """Shorten the file to its last newline, lest two records end up on one line."""
    if not path.exists():
        return
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
