"""JSON that every reader accepts, and files that are either whole or absent."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
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


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file such that a crash or Ctrl-C leaves the old one or the new one, whole.

    Raises:
        OSError: if the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
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
