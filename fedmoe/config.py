"""From words to a checked `ExperimentConfig`, and that to JSON and back.

The classes are in `fedmoe.schema`, the default values in `fedmoe/conf`; here the two meet. Every
mistake becomes one line that names the key as the user typed it, its value, and what is allowed.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from fedmoe.configuration.composition import default_composer
from fedmoe.configuration.locating import hints, locate
from fedmoe.configuration.wording import allowed, hint, no_such_key, one_line
from fedmoe.configuration.words import (
    PATH_KEYS,
    Word,
    from_command_line,
    from_environment,
    from_keywords,
    merge,
)
from fedmoe.errors import ConfigError
from fedmoe.schema import ExperimentConfig

_MAX_JSON_CHARACTERS = 1_000_000
_KINDS = {
    "bool_type": "true or false",
    "dataclass_type": "a group of keys",
    "dict_type": "a table, such as {key: value}",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "text",
    "tuple_type": "a list, such as [64, 32]",
}


def load_config(overrides: Sequence[str] = (), **keywords: Any) -> ExperimentConfig:
    """Compose and check a configuration, for notebooks, tests and Flower's apps.

    Args:
        overrides: words as on the command line; they beat the keywords.
        **keywords: `training={"batch_size": 64}`, `training__batch_size=64`, `model="moe"` or
            `rounds=3`; they beat the `FED_MOE_*` variables, which beat the YAML files.

    Raises:
        ConfigError: one line that names the wrong word and what is allowed.
    """
    composer = default_composer()
    layers = [
        *from_environment(os.environ),
        *from_keywords(keywords),
        *from_command_line(overrides),
    ]
    words = merge(layers, composer.is_group)
    return from_hydra(composer.compose(words), words)


def from_hydra(config: DictConfig, words: Sequence[Word] = ()) -> ExperimentConfig:
    """Check what Hydra has composed, and make its paths absolute.

    Args:
        config: with or without Hydra's own node, which is ignored.
        words: what it was composed from, so that an error can name the one at fault.

    Raises:
        ConfigError: a value is missing, cannot be resolved, or is not allowed.
    """
    try:
        table = {str(key): _resolved(config, key) for key in config if key != "hydra"}
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: no value given; type {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{_shown(str(error.full_key), words)}: {reason}") from error
    return _checked(_with_paths(table), words)


def validate(mapping: Mapping[str, Any]) -> ExperimentConfig:
    """Check a plain nested mapping; lists may stand for tuples, nothing else is converted.

    Raises:
        ConfigError: a key or value is not allowed.
    """
    return _checked(mapping, ())


def to_json(config: ExperimentConfig) -> str:
    """Write a configuration as one line that `from_json` reads back unchanged."""
    return json.dumps(dataclasses.asdict(config), separators=(",", ":"))


def from_json(text: str) -> ExperimentConfig:
    """Read a configuration that may come from anybody: checked values, never code.

    Raises:
        ConfigError: too long, not JSON, or a key or value that is not allowed.
    """
    if len(text) > _MAX_JSON_CHARACTERS:
        raise ConfigError(f"a configuration of {len(text)} characters is too long to be one")
    return _parsed(text, ())


# ------------------------------------------------------------------------- checking


@functools.cache
def _adapter() -> TypeAdapter[ExperimentConfig]:
    return TypeAdapter(ExperimentConfig)


def _checked(table: Mapping[str, Any], words: Sequence[Word]) -> ExperimentConfig:
    # Strict JSON is the one mode in which a list may be a tuple but "3" may not be a number.
    try:
        text = json.dumps(table)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the configuration holds more than plain values: {error}") from error
    return _parsed(text, words)


def _parsed(text: str, words: Sequence[Word]) -> ExperimentConfig:
    try:
        return _adapter().validate_json(text, strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    # A key too many explains the keys that are missing, not the other way round.
    order = {"unexpected_keyword_argument": 0, "missing": 2}
    first = min(problems, key=lambda problem: order.get(problem["type"], 1))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise ConfigError(_explain(first, words) + more)


def _resolved(config: DictConfig, key: Any) -> Any:
    """What is below a key, as plain values."""
    value = config[key]
    if not OmegaConf.is_config(value):
        return value
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)


def _with_paths(table: Any) -> dict[str, Any]:
    """Resolve `~` and relative paths from where the command was typed."""
    for key in PATH_KEYS:
        *above, name = key.split(".")
        node = functools.reduce(
            lambda n, k: n.get(k) if isinstance(n, dict) else None, above, table
        )
        if isinstance(node, dict) and isinstance(node.get(name), str):
            if not node[name]:
                raise ConfigError(f"{key}=: must be a path, or null for none")
            try:
                node[name] = str(Path(node[name]).expanduser().absolute())
            except RuntimeError as error:
                raise ConfigError(f"{key}={node[name]}: no such home directory") from error
    return dict(table)


# --------------------------------------------------------------------------- errors


def _explain(problem: ErrorDetails, words: Sequence[Word]) -> str:
    """Turn one of pydantic's findings into our one line."""
    cls, path, group = locate(problem["loc"])
    kind, dotted = problem["type"], ".".join(map(str, path))
    if kind == "json_invalid":
        return f"the configuration is not valid JSON text: {problem['ctx']['error']}"
    if not path:
        return str(problem["ctx"]["error"]) if kind == "value_error" else (
            f"the configuration {_rule(problem)}"
        )  # fmt: skip
    if kind != "union_tag_invalid" and (renamed := _renamed(path, words)) is not None:
        return renamed
    if kind == "missing":
        choice = f"; choose the option with {group}=..." if len(path) > 1 else ""
        return f"{dotted}: missing{choice}"
    if kind == "value_error":
        return f"{_shown(dotted, words, below=True)}: {problem['ctx']['error']}"
    extra = kind == "unexpected_keyword_argument"
    shown = _shown(dotted, words, problem["input"], below=extra)
    if extra:
        section = "".join(f"{part}." for part in path[:-1])
        return f"{shown}: {no_such_key(section, str(path[-1]), list(hints(cls)))}"
    if kind == "union_tag_invalid":
        shown = _shown(f"{dotted}.name", words, problem["ctx"]["tag"])
        names = problem["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{shown}: no such option; {hint(problem['ctx']['tag'], names)}{allowed(names)}"
    if kind == "union_tag_not_found":
        return f"{dotted}.name: missing; choose the option with {group}=..."
    nullable = NoneType in get_args(hints(cls).get(str(path[-1])))
    return f"{shown}: {_rule(problem)}{' or null' if nullable else ''}"


def _renamed(path: Sequence[int | str], words: Sequence[Word]) -> str | None:
    """Say how an option is picked, to somebody who set the `name` of one alone."""
    for depth in range(1, len(path) + 1):
        key = ".".join(map(str, path[:depth]))
        for word in reversed(words):
            if word.text.startswith(f"{key}.name="):
                option = word.text.partition("=")[2]
                group = key.replace(".", "/")
                return f"{word.shown}: not set by itself; type {group}={option}"
    return None


def _rule(problem: ErrorDetails) -> str:
    """What a value must be, in the user's terms."""
    kind = problem["type"]
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}"
    if kind == "literal_error":
        expected = problem["ctx"]["expected"].replace("'", "")
        names = expected.replace(" or ", ", ").split(", ")
        near = hint(str(problem["input"]), names)
        return f"{near}It must be {expected}" if near else f"must be {expected}"
    for before in ("Input should ", "String should ", "Tuple should "):
        if problem["msg"].startswith(before):
            return "must " + problem["msg"].removeprefix(before).partition(" after validation")[0]
    return problem["msg"]


def _shown(dotted: str, words: Sequence[Word], value: Any = ..., below: bool = False) -> str:
    """The word that set a key, as the user wrote it; else `key=value`."""
    for word in reversed(words):
        if word.key == dotted or (below and word.key.startswith(f"{dotted}.")):
            return word.shown
    return dotted if value is ... else one_line(f"{dotted}={_plain(value)}")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
