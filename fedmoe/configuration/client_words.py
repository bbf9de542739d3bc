"""From words to what a client process is told: few keys, and no groups to choose from."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from fedmoe.configuration.wording import leaves, no_such_key, one_line
from fedmoe.configuration.words import PREFIX
from fedmoe.errors import ConfigError
from fedmoe.schema.client import ClientProcessConfig

_YAML = Path(__file__).parents[1] / "conf" / "client.yaml"
_GROUPS = ("client.", "runtime.server")  # of variables that are meant for clients


def client_config(
    arguments: Sequence[str], environ: Mapping[str, str] = os.environ
) -> ClientProcessConfig:
    """Read the defaults, the environment and the command line, each stronger than the one before.

    Raises:
        ConfigError: one line that names the wrong word and what is allowed.
    """
    table = OmegaConf.load(_YAML)
    known = [key for key, _ in leaves(OmegaConf.to_container(table))]  # type: ignore[arg-type]
    for key, value, shown in [*_from_environment(environ), *_from_arguments(arguments)]:
        if key not in known:
            raise ConfigError(f"{shown}: {no_such_key('', key, known)}")
        try:
            OmegaConf.update(table, key, OmegaConf.from_dotlist([f"x={value}"])["x"])
        except OmegaConfBaseException as error:
            raise ConfigError(f"{shown}: {one_line(str(error).partition(chr(10))[0])}") from error
    plain: dict[str, Any] = OmegaConf.to_container(table)  # type: ignore[assignment]
    seat = plain["client"]
    if seat["partition"] is None and seat["data"] is None and seat["keys"] is None:
        raise ConfigError(
            "client.partition: no value given; say which of the federation's clients this is, "
            "from 0: client.partition=0"
        )
    return _checked(plain)


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for name in sorted(environ):
        key = name.removeprefix(PREFIX).lower().replace("__", ".")
        if name.startswith(PREFIX) and key.startswith(_GROUPS):
            yield key, environ[name], one_line(f"{name}={environ[name]}")


def _from_arguments(arguments: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{one_line(word)}: must be KEY=VALUE, such as client.partition=0")
        yield key, value, one_line(word)


def _checked(table: dict[str, Any]) -> ClientProcessConfig:
    try:
        adapter = TypeAdapter(ClientProcessConfig)
        return adapter.validate_json(json.dumps(table), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    rule = first["msg"].replace("Input should ", "must ").replace("String should ", "must ")
    raise ConfigError(one_line(f"{key}={first['input']}: {rule}"))
