"""Reading CSV, Parquet and NPZ files into named columns, with errors that say where.

Every row that is found is kept, and nothing is guessed: a cell that is missing, or a row of
the wrong length, is an error with its place.
"""

import csv
import difflib
import importlib.util
import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.data.sources.missing import MissingDataError
from fedmoe.errors import DataError

Column = list[str] | NDArray[Any]
"""Text, or a one-dimensional array of integers, floats or booleans."""


@dataclass(frozen=True)
class Table:
    """Columns of equal length, at least one row.

    Attributes:
        path: where they come from.
        columns: by name, in the order of the file.
        lines: of a CSV file, the line on which each row starts, counted from 1.
    """

    path: Path
    columns: dict[str, Column]
    lines: list[int] | None = None

    @property
    def num_rows(self) -> int:
        """N."""
        return len(next(iter(self.columns.values())))

    def column(self, name: str, role: str) -> Column:
        """A column by name.

        Args:
            name: of the column.
            role: the configuration key that named it, for the message.

        Raises:
            DataError: if there is no such column; names the nearest one.
        """
        if name not in self.columns:
            nearest = difflib.get_close_matches(name, self.columns, n=1, cutoff=0.0)[0]
            raise DataError(
                f"{self.path}: no column {name!r} (from {role}); the nearest of its "
                f"{len(self.columns)} columns is {nearest!r}"
            )
        return self.columns[name]

    def fault(self, name: str, row: int, message: str) -> DataError:
        """An error about one cell; `row` counts from 0, the message as an editor does."""
        place = f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"
        return DataError(f"{self.path}, column {name!r}, {place}: {message}")


def read_table(path: Path) -> Table:
    """Read a file by its suffix.

    Args:
        path: a `.csv`, `.parquet` or `.npz` file.

    Returns:
        Its columns.

    Raises:
        MissingDataError: if there is no such file, or no package to read it with.
        DataError: if the file is not what its suffix says, or no table.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: unknown kind of file {path.suffix!r}; known are {', '.join(_READERS)}"
        )
    if not path.exists():
        raise MissingDataError(f"there is no file {path}", "check data.path")
    if path.is_dir():
        raise DataError(f"{path}: a folder, not a file")
    table = reader(path)
    if table.num_rows == 0:
        raise DataError(f"{path}: it has columns but no rows")
    return table


def _read_csv(path: Path) -> Table:
    header: list[str] | None = None
    rows: list[list[str]] = []
    lines: list[int] = []
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True, skipinitialspace=True)
    line = 1
    try:
        for row in reader:
            if row and header is None:
                header = _names(path, [name.strip() for name in row])
            elif row and header is not None:  # blank lines are skipped
                if len(row) != len(header):
                    raise DataError(
                        f"{path}, line {line}: {len(row)} cells, the header has {len(header)}"
                    )
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: not valid CSV: {error}") from error
    if header is None:
        raise DataError(f"{path}: the file is empty")
    cells = zip(*rows, strict=True) if rows else [()] * len(header)
    columns: dict[str, Column] = {
        name: [cell.strip() for cell in column] for name, column in zip(header, cells, strict=True)
    }
    return Table(path, columns, lines)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")  # spreadsheets put a byte order mark in front
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error


def _read_parquet(path: Path) -> Table:
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingDataError(
            f"{path} needs pyarrow, which is not installed", "pip install 'fedmoe[parquet]'"
        )
    import pyarrow as pa
    import pyarrow.parquet

    try:
        # Of the one file: a folder called `year=2013` must not become a column.
        with pyarrow.parquet.ParquetFile(path) as file:
            stored = file.read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {_first_line(error)}") from error
    columns: dict[str, Column] = {}
    for name, values in zip(_names(path, stored.column_names), stored.columns, strict=True):
        if values.null_count:
            row = int(np.flatnonzero(values.is_null().to_numpy())[0])
            raise Table(path, {}).fault(name, row, "an empty cell")
        kind = values.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            columns[name] = values.to_numpy()
        elif pa.types.is_decimal(kind):
            columns[name] = values.cast(pa.float64()).to_numpy()
        else:
            columns[name] = [str(value).strip() for value in values.to_pylist()]
    return Table(path, columns)


def _read_npz(path: Path) -> Table:
    arrays = _arrays(path)
    columns: dict[str, Column] = {}
    for name, array in arrays.items():
        if array.dtype.kind not in "biufU":
            raise DataError(
                f"{path}: array {name!r} has dtype {array.dtype}; only numbers, booleans and "
                "text are read"
            )
        if array.ndim == 2 and name == "x":
            for feature in range(array.shape[1]):
                columns[f"x[{feature}]"] = array[:, feature]
        elif array.ndim != 1:
            raise DataError(
                f"{path}: array {name!r} has shape {array.shape}; only 'x' may have two "
                "dimensions, every other array is one column"
            )
        else:
            text = array.dtype.kind == "U"
            columns[name] = [str(cell).strip() for cell in array] if text else array
    _names(path, list(columns))
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise DataError(f"{path}: arrays of different lengths: {told}")
    return Table(path, columns)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    name = ""
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: not an NPZ file but a single array")
            for name in archive.files:
                arrays[name] = archive[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        where = f", array {name!r}" if name else ""
        raise DataError(f"{path}{where}: not readable as NPZ: {_first_line(error)}") from error
    return arrays


def _names(path: Path, names: Sequence[str]) -> list[str]:
    """The column names, if there are any and each is given and unique."""
    if not names:
        raise DataError(f"{path}: no columns")
    seen: set[str] = set()
    for position, name in enumerate(names):
        if not name:
            raise DataError(f"{path}: column {position + 1} has no name")
        if name in seen:
            raise DataError(f"{path}: two columns are called {name!r}")
        seen.add(name)
    return list(names)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


_READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".npz": _read_npz,
}
