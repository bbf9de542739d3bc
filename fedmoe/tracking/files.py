"""JSON that every reader accepts, and files that are either whole or absent."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np


def to_json(value: Any, indent: int | None = None) -> str:
    """Encode as strict JSON: what is not a finite number becomes `null`.

    Args:
        value: plain Python values, NumPy scalars and arrays, and paths, nested at will.
        indent: spaces per level, or `None` for one line.

    Raises:
        TypeError: if it holds anything else.
    """
    try:
        return json.dumps(value, indent=indent, default=_plain, allow_nan=False)
    except ValueError:
        # Rare, so only then is the record walked in Python to find the NaN.
        return json.dumps(_finite(value), indent=indent, allow_nan=False)


def lines_of(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """JSON objects of one line each from columns of equal length; see `to_json`.

    What is the same in all lines is encoded once, and a column of numbers in one call: ten times
    as fast as line by line.
    """
    names, template, varying = list(columns), [], []
    for name in names:
        values = columns[name]
        if len(values) > 1 and _is_constant(values):
            encoded = to_json(values[0]).replace("%", "%%")
        else:
            encoded = "%s"
            varying.append(_encoded_column(values))
        template.append(json.dumps(name).replace("%", "%%") + ": " + encoded)
    line = "{" + ", ".join(template) + "}"
    if not varying:
        return [line % ()] * (len(columns[names[0]]) if names else 0)
    return [line % entries for entries in zip(*varying, strict=True)]


def _is_constant(values: Sequence[Any]) -> bool:
    """Whether all are one scalar, of one type: 1, 1.0 and True are equal to each other."""
    first = values[0]
    return (
        type(first) in (int, float, str, bool, NoneType)
        and values.count(first) == len(values)
        and len(set(map(type, values))) == 1
    )


def _encoded_column(values: Sequence[Any]) -> list[str]:
    if not values or not set(map(type, values)) <= {int, float, NoneType}:
        distinct = {id(value): value for value in values}  # one object may stand in many lines
        encoded = {key: to_json(value) for key, value in distinct.items()}
        return [encoded[id(value)] for value in values]
    return to_json(values)[1:-1].split(", ")


def write_atomic(
    path: Path, content: bytes, *, private: bool = False, durable: bool = True
) -> None:
    """Write a file such that a crash or Ctrl-C leaves the old one or the new one, whole.

    Args:
        path: of the file.
        content: all of it.
        private: whether nobody but its owner may read it.
        durable: whether it is to outlive the machine's loss of power too, for which the disk is
            waited for.

    Raises:
        OSError: if the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    mode = 0o600 if private else 0o666  # less what the process's mask takes away
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """What `json` cannot encode by itself."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


def _finite(value: Any) -> Any:
    """The same value in plain Python types, with `None` for NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    return _finite(_plain(value))
