"""The user's own table: a column to predict, perhaps a client column, all the others features.

What `data.task: auto` makes of the target column:

1. text: classes, in alphabetical order;
2. whole numbers (or booleans) with at most 20 distinct values: classes, in rising order;
3. other numbers: regression.

A column in which some cells are numbers and some are text is refused, since it is mostly a
typing error; with `data.task: classification` it is text. The client column may hold anything.

Letters: N samples, D features, O outputs.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedmoe.data.federation import Dataset, Floats, Ints, Task
from fedmoe.data.sources.table_files import Column, Table, read_table
from fedmoe.errors import DataError
from fedmoe.schema import TableConfig

AUTO_MAX_CLASSES = 20


def load(config: TableConfig, _rng: np.random.Generator) -> Dataset:
    """Read the file that the configuration names.

    Returns:
        The data set: float32 features in the order of the file, and natural clients if
        `client_column` is set.

    Raises:
        MissingDataError: if there is no such file, or no package to read it with.
        DataError: for whatever is wrong with the file; names file, column and row.
    """
    if config.path is None or config.target is None:
        missing = "data.path" if config.path is None else "data.target"
        raise DataError(f"table: {missing} is not set")
    return from_table(read_table(_resolved(config.path)), config, config.target)


def from_table(table: Table, config: TableConfig, target_name: str) -> Dataset:
    """A table as a data set.

    Args:
        table: that has been read.
        config: which columns it must have, and what they mean; its `path` does not matter.
        target_name: the column to predict.

    Raises:
        DataError: it is not as it must be; names file, column and row.
    """
    target = table.column(target_name, "data.target")
    kind = _task_kind(table, config, target_name, target)
    y_N: Floats | Ints
    class_names: tuple[str, ...] = ()
    if kind == "classification":
        y_N, class_names = _classes(table, target_name, target, config.classes)
    else:
        y_N = _numbers(table, target_name, target).astype(np.float32)[:, None]
    client_N, client_names = _clients(table, config)
    x_ND = _features(table, {target_name, config.client_column}, config.features)
    return Dataset(
        name=config.name,
        origin="real",
        task=Task(
            kind=kind,
            num_features=x_ND.shape[1],
            num_outputs=len(class_names) or 1,
            class_names=class_names,
        ),
        x_ND=x_ND,
        y_N=y_N,
        client_N=client_N,
        client_names=client_names,
        standardise=config.standardise,
    )


def _resolved(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~somebody who is not known here
        raise DataError(f"table: data.path {path!r}: {error}") from error


def _task_kind(
    table: Table, config: TableConfig, name: str, target: Column
) -> Literal["classification", "regression"]:
    """The rule in this module's docstring."""
    if config.task != "auto":
        return config.task
    if config.classes is not None:
        return "classification"
    if isinstance(target, list):
        _refuse_missing(table, name, target)
        text = [row for row, cell in enumerate(target) if _number(cell) is None]
        if len(text) == len(target):
            return "classification"
        if text:
            raise table.fault(
                name,
                text[0],
                f"text {_shown(target[text[0]])} among numbers; correct it, or set "
                "data.task=classification to take every value as text",
            )
    numbers = _numbers(table, name, target)
    few = len(np.unique(numbers)) <= AUTO_MAX_CLASSES
    return "classification" if few and _all_whole(numbers) else "regression"


def _classes(
    table: Table, name: str, target: Column, classes: tuple[str, ...] | None
) -> tuple[Ints, tuple[str, ...]]:
    """Class indices (N,) and the names of the classes: those that are told, or those found."""
    if not isinstance(target, list) or all(_number(cell) is not None for cell in target):
        target = _numbers(table, name, target)  # 1 and 1.0 are the same class
        broken = np.flatnonzero(target != np.round(target))
        if len(broken):
            raise table.fault(
                name,
                int(broken[0]),
                f"{target[broken[0]]:g} is no class; classes are text or whole numbers",
            )
    class_names, y_N = _distinct(table, name, target)
    if classes is not None:
        return _as_told(table, name, class_names, y_N, classes), classes
    if len(class_names) == 1:
        raise DataError(
            f"{table.path}, column {name!r}: a single class, {_shown(class_names[0])}, in all "
            f"{table.num_rows} rows; there is nothing to tell apart"
        )
    return y_N, class_names


def _clients(table: Table, config: TableConfig) -> tuple[Ints | None, tuple[str, ...]]:
    """Natural clients (N,) and their names, if a client column is set."""
    name = config.client_column
    if name is None:
        return None, ()
    if name == config.target:
        raise DataError(f"table: {name!r} is both data.target and data.client_column")
    names, client_N = _distinct(table, name, table.column(name, "data.client_column"))
    return client_N, names


def _as_told(
    table: Table, name: str, found: tuple[str, ...], y_N: Ints, classes: tuple[str, ...]
) -> Ints:
    """Indices of the classes found as indices of those that are told, (N,)."""
    place = {one: index for index, one in enumerate(classes)}
    for index, one in enumerate(found):
        if one not in place:
            row = int(np.flatnonzero(y_N == index)[0])
            told = ", ".join(classes)
            raise table.fault(name, row, f"{_shown(one)} is none of data.classes: {told}")
    return np.array([place[one] for one in found], dtype=np.int64)[y_N]


def _features(table: Table, others: set[str | None], told: tuple[str, ...] | None) -> Floats:
    """The columns that are told, or all but the target and the client column; float32 (N, D)."""
    names = [name for name in table.columns if name not in others]
    if told is not None:
        for name in told:
            table.column(name, "data.features")
        if extra := [name for name in names if name not in told]:
            raise DataError(
                f"{table.path}: column {extra[0]!r} is none of data.features: {', '.join(told)}"
            )
        names = list(told)
    if not names:
        raise DataError(f"{table.path}: no feature columns beside the target and the client")
    x_ND = np.empty((table.num_rows, len(names)), dtype=np.float32)
    for feature, name in enumerate(names):
        x_ND[:, feature] = _numbers(table, name, table.columns[name])
    return x_ND


def _distinct(table: Table, name: str, column: Column) -> tuple[tuple[str, ...], Ints]:
    """The distinct values as names, by number if all are numbers, and each row's index."""
    if isinstance(column, list):
        _refuse_missing(table, name, column)
        if all(_number(cell) is not None for cell in column):
            values = sorted(set(column), key=lambda cell: (float(cell), cell))
        else:
            values = sorted(set(column))
        index = {value: position for position, value in enumerate(values)}
        return tuple(values), np.array([index[cell] for cell in column], dtype=np.int64)
    _numbers(table, name, column)  # refuses what is not finite
    distinct, inverse = np.unique(column, return_inverse=True)
    return tuple(_label(value) for value in distinct.tolist()), inverse.astype(np.int64)


def _numbers(table: Table, name: str, column: Column) -> NDArray[np.float64]:
    """A column as finite float64 numbers that float32 can hold."""
    if isinstance(column, list):
        numbers = _parsed(table, name, column)
    else:
        numbers = column.astype(np.float64)
        if np.isnan(numbers).any():
            raise table.fault(name, int(np.flatnonzero(np.isnan(numbers))[0]), "not a number (NaN)")
    beyond = np.flatnonzero(np.abs(numbers) > np.finfo(np.float32).max)
    if len(beyond):
        value = numbers[beyond[0]]
        raise table.fault(name, int(beyond[0]), f"{value:g} is infinite or too large for float32")
    return numbers


def _parsed(table: Table, name: str, column: list[str]) -> NDArray[np.float64]:
    """Text as numbers, whole columns at a time; cell by cell only to say which one is wrong."""
    try:
        numbers = np.array([float(cell) for cell in column])
        if not np.isnan(numbers).any() and "_" not in "".join(column):
            return numbers
    except ValueError:
        pass
    _refuse_missing(table, name, column)
    row = next(row for row, cell in enumerate(column) if _number(cell) is None)
    raise table.fault(name, row, f"text {_shown(column[row])} where a number is needed")


def _refuse_missing(table: Table, name: str, column: list[str]) -> None:
    for row, cell in enumerate(column):
        if not cell:
            raise table.fault(name, row, "an empty cell")
        if cell.lower().lstrip("+-") == "nan":
            raise table.fault(name, row, "not a number (NaN)")


def _number(cell: str) -> float | None:
    """What a cell says, or `None` for text. Python's 1_000 counts as text: it is mostly an ID."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _all_whole(numbers: NDArray[np.float64]) -> bool:
    return bool(np.all(numbers == np.round(numbers)))


def _label(value: Any) -> str:
    """A name for a class or client: 3.0 is 3, and True and False are 1 and 0."""
    return str(int(value)) if value == int(value) else str(value)


def _shown(cell: str) -> str:
    """A cell for a one-line message."""
    return repr(cell if len(cell) <= 40 else cell[:37] + "...")
