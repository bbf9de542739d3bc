"""The words of a configuration, whoever says them.

Environment variables, keyword arguments and the command line all become words of Hydra's
override grammar, in this order of strength: YAML < environment < keyword < command line.
A group option that the user picks anywhere beats the one that an experiment file picks, because
experiment files are YAML.
"""

import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from fedmoe.configuration.wording import brief, leaves, one_line
from fedmoe.errors import ConfigError

PREFIX = "FED_MOE_"
PATH_KEYS = frozenset({"data.path", "resume"})
BROKEN = (HydraException, ValueError, RecursionError)  # what Hydra's parser and composer raise
_OPEN_TABLES = (
    "data.options.",
    "model.options.",
    "model.expert_options.",
    "strategy.options.",
)  # any key may be added to these


@dataclass(frozen=True)
class Word:
    """One override.

    Attributes:
        text: in Hydra's grammar.
        shown: as the user wrote it, for messages; one printable line.
    """

    text: str
    shown: str

    @property
    def key(self) -> str:
        """The key or group without its `+`, `++` or `~`."""
        return self.text.lstrip("+~").partition("=")[0].strip()


# ------------------------------------------------------------------- the three layers


def from_environment(environ: Mapping[str, str]) -> list[Word]:
    """Read `FED_MOE_TRAINING__BATCH_SIZE=64` as `training.batch_size=64`, and so on."""
    words = []
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        key = variable.removeprefix(PREFIX).lower().replace("__", ".")
        raw = environ[variable]
        words.append(Word(_normal(f"{key}={quoted(raw)}"), one_line(f"{variable}={raw}")))
    return words


def from_keywords(keywords: Mapping[str, Any]) -> list[Word]:
    """Read `training={"batch_size": 64}`, `training__batch_size=64` and `model="moe"`.

    Raises:
        ConfigError: a value has no counterpart in YAML.
    """
    words = []
    for key, value in leaves({name.replace("__", "."): v for name, v in keywords.items()}):
        words.append(Word(_normal(f"{key}={_literal(key, value)}"), one_line(f"{key}={value}")))
    return words


def from_command_line(overrides: Iterable[str]) -> list[Word]:
    """Take Hydra words as typed; `experiment=x` and paths with `~` are understood as well."""
    return [Word(_normal(text), one_line(text)) for text in overrides]


def merge(words: Sequence[Word], is_group: Callable[[str], bool]) -> list[Word]:
    """Keep the last word about each key: Hydra refuses two choices of some groups.

    Tables stay, as they are merged. `~experiment` or `experiment=null` takes back an experiment
    that the environment named.

    Args:
        words: weakest first.
        is_group: whether a key is a group, where `model=x`, `+model=x` and `~model` mean one thing.
    """
    kept: list[Word] = []
    said: set[str] = set()
    for word in reversed([_as_group(word, is_group) for word in words]):
        subject = word.key if is_group(word.key) else word.text.partition("=")[0]
        if word.text.partition("=")[2].startswith("{"):
            kept.append(word)
        elif subject not in said:
            said.add(subject)
            kept.append(word)
    return [w for w in reversed(kept) if w.text not in {"+experiment=null", "~experiment"}]


def _as_group(word: Word, is_group: Callable[[str], bool]) -> Word:
    """Say `model/router=x` for `model.router=x`: no variable or keyword can hold a slash."""
    key, equals, value = word.text.partition("=")
    group = key.replace(".", "/")
    if "." not in key or value.startswith("{") or not is_group(group):
        return word
    return Word(f"{group}{equals}{value}", word.shown)


def quoted(raw: str) -> str:
    """Quote raw text that Hydra would refuse, sweep over, or read as different text."""
    try:
        override = OverridesParser.create().parse_override(f"key={raw}")
    except BROKEN:
        return QuotedString(raw, Quote.single).with_quotes()
    value = override.value()
    altered = isinstance(value, str) and value != raw and raw[0] not in "'\""
    if override.is_sweep_override() or altered:
        return QuotedString(raw, Quote.single).with_quotes()
    return raw


def _normal(text: str) -> str:
    """Say what the user meant where Hydra's grammar wants more ceremony."""
    key, equals, value = text.partition("=")
    bare = key.lstrip("+")
    if bare == "experiment":
        return f"+experiment{equals}{value}"
    if bare.startswith(_OPEN_TABLES) and bare == key:
        return f"++{text}"
    if bare in PATH_KEYS and not _parses(text):
        return f"{key}={quoted(value)}"
    return text


def _parses(text: str) -> bool:
    try:
        OverridesParser.create().parse_override(text)
    except BROKEN:
        return False
    return True


def _literal(key: str, value: Any) -> str:
    """Write a Python value in Hydra's grammar, its type kept."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return QuotedString(str(value), Quote.single).with_quotes()
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        return repr(float(value))
    if isinstance(value, list | tuple):
        return "[" + ",".join(_literal(key, item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_literal(key, v)}" for k, v in value.items()) + "}"
    raise ConfigError(f"{key}: a {type(value).__name__} cannot be a configuration value")


def grammar_problem(word: Word, error: Exception) -> str:
    """What is wrong with a word that Hydra's grammar does not know."""
    if "=" not in word.text and not word.text.startswith("~"):
        return "expected key=value"
    return f"not in Hydra's grammar ({brief(error)}); quote text: {word.key}='...'"
