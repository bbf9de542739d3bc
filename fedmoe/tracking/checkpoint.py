"""Checkpoints: the arrays in one safetensors file, all else in a JSON file that vouches for it.

The JSON file is written last and holds the digest of the other, so a crash between the two
leaves no checkpoint rather than half of one.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedmoe.errors import RunError
from fedmoe.tracking.files import write_atomic

_FOLDER = "checkpoints"
_LOGGER = logging.getLogger("fedmoe.tracking.Checkpoint")


@dataclass(frozen=True)
class Checkpoint:
    """Where a run can go on from.

    Attributes:
        round: the last round that is in it.
        arrays: by name; writable, in the shapes and dtypes that were saved.
        state: plain JSON values.
    """

    round: int
    arrays: dict[str, NDArray[Any]]
    state: dict[str, Any]


def save_checkpoint(
    directory: Path,
    round: int,
    arrays: Mapping[str, NDArray[Any]],
    state: Mapping[str, Any],
    kept: int = 2,
) -> None:
    """Write `checkpoints/round-00012.safetensors` and `.json`, and keep the last rounds' alone.

    Checkpoints of later rounds belong to a history that was rolled back, and are removed.

    Args:
        directory: the run directory.
        round: the round just finished.
        arrays: by name, of any shape; float, int and bool dtypes come back bit for bit, in order.
        state: plain JSON values with text keys; NaN and the infinities are kept as they are.
        kept: how many checkpoints there are to be, this one included.

    Raises:
        TypeError: if `state` holds what JSON cannot.
        OSError: if the disk refuses.
    """
    folder = directory / _FOLDER
    folder.mkdir(exist_ok=True)
    stem = f"round-{round:05d}"
    # safetensors writes a strided view's memory as it lies; asarray keeps 0-d arrays 0-d.
    content = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    manifest = {
        "round": round,
        "arrays": f"{stem}.safetensors",
        "names": list(arrays),
        "sha256": hashlib.sha256(content).hexdigest(),
        "state": state,
    }
    text = json.dumps(manifest, indent=2) + "\n"
    # An earlier checkpoint of the same round must not vouch for the new arrays.
    (folder / f"{stem}.json").unlink(missing_ok=True)
    write_atomic(folder / f"{stem}.safetensors", content)
    write_atomic(folder / f"{stem}.json", text.encode())
    _prune(folder, round, kept)


def drop_checkpoint(directory: Path, round: int) -> None:
    """Have no checkpoint of a round, whether there is one or not.

    Raises:
        OSError: if the disk refuses.
    """
    folder = directory / _FOLDER
    if folder.is_dir():
        for ending in ("json", "safetensors"):  # without the first the second is none
            (folder / f"round-{round:05d}.{ending}").unlink(missing_ok=True)


def latest_checkpoint(directory: Path) -> Path | None:
    """The JSON file of the newest finished checkpoint of a run directory, if there is one."""
    manifests = _manifests(directory / _FOLDER)
    return manifests[-1] if manifests else None


def load_checkpoint(directory: Path, before: float = math.inf) -> Checkpoint:
    """Load the newest checkpoint of a run directory that is intact.

    A damaged one is reported with a warning, and the one before it is tried.

    Args:
        directory: the run directory.
        before: only those of earlier rounds.

    Raises:
        RunError: if there is none, or none is intact.
    """
    manifests = [one for one in _manifests(directory / _FOLDER) if _round_of(one) < before]
    if not manifests:
        raise RunError(f"no checkpoint in {directory}")
    problems = []
    for manifest in reversed(manifests):
        try:
            checkpoint = _load(manifest)
        except RunError as error:
            problems.append(error)
            continue
        for problem in problems:
            _LOGGER.warning("%s; going back to round %d", problem, checkpoint.round)
        return checkpoint
    raise problems[0]


def _manifests(folder: Path) -> list[Path]:
    """The JSON files by round."""
    return sorted(folder.glob("round-*.json"), key=_round_of)


def _round_of(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))


def _load(manifest: Path) -> Checkpoint:
    try:
        values = json.loads(manifest.read_bytes())
        content = (manifest.parent / values["arrays"]).read_bytes()
        if hashlib.sha256(content).hexdigest() != values["sha256"]:
            raise ValueError(f"{values['arrays']} has another digest than was recorded")
        loaded = load(content)
        # safetensors sorts by dtype and name; sums over names come out alike in their own order.
        # The arrays are views of their buffers, whose mutability safetensors does not promise.
        arrays = {name: np.require(loaded[name], requirements="W") for name in values["names"]}
        return Checkpoint(values["round"], arrays, values["state"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise RunError(f"damaged checkpoint {manifest}: {reason}") from error


def _prune(folder: Path, newest: int, count: int) -> None:
    """Remove all but the last checkpoints; the JSON file before the arrays it vouches for."""
    earlier = [manifest for manifest in _manifests(folder) if _round_of(manifest) <= newest]
    kept = {manifest.stem for manifest in earlier[-count:]}
    for path in sorted(folder.glob("round-*")):
        if path.stem not in kept:
            path.unlink()
