"""Hydra's composition of words into one configuration, with errors that a user understands."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fedmoe.configuration.loader import Known, Loader
from fedmoe.configuration.wording import allowed, brief, hint, no_such_key
from fedmoe.configuration.words import BROKEN, Word, grammar_problem
from fedmoe.errors import ConfigError

CONFIG_PATH = "pkg://fedmoe.conf"
CONFIG_NAME = "config"
VERSION_BASE = "1.3"
_EXPERIMENT = "experiment"
_OPTIONAL = ("meta_learner",)  # with_STRATEGY, where there is such a file
_LAUNCHER = "hydra/launcher"
_LAUNCHER_EXTRAS = {"joblib": "joblib", "ray": "sweeps"}  # by option, what brings it


class Composer:
    """Hydra's loader without its process-wide state, so that it works inside a Hydra job too."""

    def __init__(
        self, config_path: str | None = None, config_dir: str | None = None, name: str | None = None
    ) -> None:
        """Look for YAML where Hydra would; the arguments are its `--config-*` flags.

        Raises:
            ConfigError: `config_dir` is not a directory.
        """
        setup_globals()
        search_path = create_automatic_config_search_path(
            None, "fedmoe.simulate", config_path or CONFIG_PATH
        )
        if config_dir is not None:
            directory = Path(config_dir).absolute()
            if not directory.is_dir():
                raise ConfigError(f"--config-dir {config_dir}: no such directory")
            search_path.prepend("command-line", f"file://{directory}", SearchPathQuery("schema"))
        of_the_package = config_path is None and config_dir is None
        self.loader = Loader(search_path, _known_of_the_package() if of_the_package else None)
        self.name = name or CONFIG_NAME

    def is_group(self, key: str) -> bool:
        """Whether the key is a configuration group, such as `model` or `model/router`."""
        return bool(key and self.loader.repository.group_exists(key))

    def compose(self, words: Sequence[Word], sweep: bool = False) -> DictConfig:
        """Compose one configuration, Hydra's own node included.

        Args:
            words: merged words, weakest first.
            sweep: skip words with several values instead of refusing them.

        Raises:
            ConfigError: a word is not understood; names it, what is allowed, and the nearest name.
        """
        with _version_base():
            try:
                config = self._load(words, sweep)
            except Exception as error:  # whatever Hydra stumbles over is in the words or the YAML
                raise self._explain(words, error, sweep) from error
            if _EXPERIMENT in config and (problem := self._misplaced(words)) is not None:
                raise problem
            self._check_optional(words)
        return config

    def _check_optional(self, words: Sequence[Word]) -> None:
        """Refuse a wrong option of a group which Hydra passes over where it has none."""
        for word in words:
            if word.key in _OPTIONAL:
                override = OverridesParser.create().parse_override(word.text)
                if (why := self._wrong_option(override)) is not None:
                    raise ConfigError(f"{word.shown}: {why}")

    def _load(self, words: Sequence[Word], sweep: bool) -> DictConfig:
        return self.loader.load_configuration(
            self.name,
            [word.text for word in words],
            RunMode.MULTIRUN if sweep else RunMode.RUN,
            validate_sweep_overrides=not sweep,
        )

    def _explain(self, words: Sequence[Word], error: Exception, sweep: bool) -> ConfigError:
        parsed: list[tuple[Word, Override]] = []
        for word in words:
            try:
                parsed.append((word, OverridesParser.create().parse_overrides([word.text])[0]))
            except BROKEN as broken:
                return ConfigError(f"{word.shown}: {grammar_problem(word, broken)}")
        for word, override in parsed:
            if (why := self._wrong_choice(override, words)) is not None:
                return ConfigError(f"{word.shown}: {why}")
        problem = self._misplaced(words) or self._wrong_key(parsed)
        if problem is not None:
            return problem
        swept = [word for word, override in parsed if override.is_sweep_override()]
        if swept and not sweep:
            return ConfigError(f"{swept[0].shown}: several values need --multirun, or quotes")
        return ConfigError(brief(error))

    def _wrong_choice(self, override: Override, words: Sequence[Word]) -> str | None:
        """What is wrong with a word that picks an option, if it is one."""
        group = override.key_or_group
        if self.is_group(group):
            return self._wrong_option(override) or self._homeless(group, words)
        if "/" not in group:
            return None
        above, _, name = group.rpartition("/")
        groups = self.loader.list_groups(above)
        where = f" in {above}" if self.is_group(above) else ""
        return f"no such group; {hint(name, groups, f'{above}/')}{allowed(groups, where)}"

    def _homeless(self, group: str, words: Sequence[Word]) -> str | None:
        """Say whose group it is, where the option above it has none of that name."""
        above, _, name = group.rpartition("/")
        if not self.is_group(above):
            return None
        try:
            table = self._load([word for word in words if word.key != group], sweep=True)
        except Exception:  # something else is wrong as well
            return None
        if OmegaConf.select(table, group.replace("/", ".")) is not None:
            return None
        return f"it belongs to {' and '.join(self._owners(above, name))}"

    def _wrong_option(self, override: Override) -> str | None:
        group = override.key_or_group
        if override.is_delete() or isinstance(override.value(), dict):
            return None
        options = self._options(group)
        for name in _chosen(override):
            if group == _LAUNCHER and name in _LAUNCHER_EXTRAS and name not in options:
                return f"not installed: pip install 'fedmoe[{_LAUNCHER_EXTRAS[name]}]'"
            if name not in options:
                return f"no such option; {hint(name, options)}{allowed(options)}"
        if override.is_force_add() or (override.is_add() and group != _EXPERIMENT):
            return f"{group} has an option already; leave out the +"
        return None

    def _options(self, group: str) -> list[str]:
        """A group's options; experiments may lie in folders, `regimes/iid`."""
        options: list[str] = self.loader.get_group_options(group)
        for folder in self.loader.list_groups(group) if group == _EXPERIMENT else ():
            below = self.loader.get_group_options(f"{group}/{folder}")
            options += [f"{folder}/{name}" for name in below]
        return options

    def _misplaced(self, words: Sequence[Word]) -> ConfigError | None:
        """Look for an experiment whose keys end up below `experiment` for want of a header."""
        for word in words:
            if word.key != _EXPERIMENT or word.text.startswith("~"):
                continue
            for name in _chosen(OverridesParser.create().parse_override(word.text)):
                found = self.loader.repository.load_config(f"{_EXPERIMENT}/{name}")
                if found is not None and not found.header.get("package"):
                    file = f"{found.path.removeprefix('file://')}/{_EXPERIMENT}/{name}.yaml"
                    return ConfigError(
                        f"{word.shown}: {file} has no line '# @package _global_' at its top; add it"
                    )
        return None

    def _wrong_key(self, parsed: Sequence[tuple[Word, Override]]) -> ConfigError | None:
        """Look for a key that is not there once all groups have their options."""
        choices = [w for w, o in parsed if self.is_group(o.key_or_group) and o.package is None]
        try:
            table = OmegaConf.to_container(self._load(choices, sweep=True))
        except Exception:  # the options themselves do not go together: not a matter of keys
            return None
        for word, override in parsed:
            if word in choices or override.is_add() or override.is_force_add():
                continue
            problem = self._unknown(override.get_key_element().lstrip("~"), table)
            if problem is not None:
                return ConfigError(f"{word.shown}: {problem}")
        return None

    def _unknown(self, key: str, table: Any) -> str | None:
        """Say what is wrong with a dotted key, or return None where the table has it."""
        node, seen = table, ""
        for part in key.split("."):
            if not isinstance(node, dict):
                return f"no such key; {seen.rstrip('.')} is a single value"
            if part not in node:
                names = [name for name in node if name != "hydra"]
                owners = self._owners(seen.rstrip(".").replace(".", "/"), part)
                return no_such_key(seen, part, names, owners, table)
            node, seen = node[part], f"{seen}{part}."
        return None

    def _owners(self, group: str, name: str) -> list[str]:
        """The options that do have a key or group: `partition=dirichlet` for `alpha`."""
        if not self.is_group(group):
            return []
        found = []
        for option in self.loader.get_group_options(group):
            result = self.loader.repository.load_config(f"{group}/{option}")
            below = [getattr(d, "group", None) for d in (result and result.defaults_list) or ()]
            if result and (name in result.config or name in below):
                found.append(f"{group}={option}")
        return found


@functools.cache
def default_composer() -> Composer:
    """The composer over the package's own YAML, made once."""
    return Composer()


@functools.cache
def _known_of_the_package() -> Known:
    """Of the package's own YAML, which does not change while a process runs."""
    return Known()


@contextmanager
def _version_base() -> Iterator[None]:
    """Use our Hydra compatibility level, and give the caller's own back."""
    instance = version.VersionBase.instance()
    before = instance.version_base
    version.setbase(VERSION_BASE)
    try:
        yield
    finally:
        instance.version_base = before


def _chosen(override: Override) -> list[str]:
    """The option or options that a word picks from its group."""
    if override.is_sweep_override():
        values = list(override.sweep_iterator()) if override.is_choice_sweep() else []
    else:
        value: Any = override.value()
        values = value if isinstance(value, list) else [value]
    return [v.text if isinstance(v, QuotedString) else str(v) for v in values]
