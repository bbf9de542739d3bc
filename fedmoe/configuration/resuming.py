"""The configuration of a run that is continued: its own, but for what may change on the way."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmoe.config import to_json, validate
from fedmoe.configuration.words import Word
from fedmoe.errors import ConfigError, RunError
from fedmoe.schema import ExperimentConfig

_MAY_CHANGE = ("rounds", "evaluate_every", "tracking", "stopping", "runtime")


def resumed_config(typed: ExperimentConfig, words: Sequence[Word]) -> ExperimentConfig:
    """The configuration that a run directory holds, with the changes that were typed.

    Args:
        typed: composed from the command line that says `resume=RUN_DIR`.
        words: that command line's words. The whole of the original may be repeated; what
            differs from it must be under `rounds`, `evaluate_every`, `tracking`, `stopping` or
            `runtime`.

    Raises:
        RunError: there is no such run, or its configuration cannot be read.
        ConfigError: something else was changed, which would make another experiment of it.
    """
    assert typed.resume is not None
    path = Path(typed.resume) / "config.json"
    try:
        saved: dict[str, Any] = json.loads(path.read_text())
        validate(saved)
    except FileNotFoundError as error:
        raise RunError(f"resume={typed.resume}: not a run directory (no config.json)") from error
    except (ValueError, ConfigError) as error:
        raise RunError(f"{path}: {error}") from error
    wanted = json.loads(to_json(typed))
    for word in words:
        root = word.key.partition(".")[0]
        if root in ("resume", "experiment", "hydra", "name"):
            continue
        if root in _MAY_CHANGE:
            _set(saved, word.key, wanted)
        elif root in wanted and wanted[root] != saved[root]:
            raise ConfigError(
                f"{word.shown}: cannot change when a run is resumed; "
                f"allowed: {', '.join(_MAY_CHANGE)}"
            )
    _check_rounds(Path(typed.resume), saved["rounds"])
    return dataclasses.replace(validate(saved), resume=typed.resume)


def _check_rounds(directory: Path, rounds: int) -> None:
    """A run cannot end before where it is."""
    try:
        done = json.loads((directory / "summary.json").read_text())["rounds"]
    except (OSError, ValueError, LookupError, TypeError):
        return  # it was killed: the checkpoint tells
    if isinstance(done, int) and rounds < done:
        raise ConfigError(f"rounds={rounds}: {directory} has {done} rounds already")


def _set(saved: dict[str, Any], key: str, wanted: dict[str, Any]) -> None:
    """Copy one dotted key, or a whole group where the word chose another option."""
    *above, name = key.split(".")
    for part in above:
        saved, wanted = saved[part], wanted[part]
    had, chosen = saved[name], wanted[name]
    if not (isinstance(had, dict) and "name" in had and had["name"] == chosen["name"]):
        saved[name] = chosen
