"""Hydra's loader of configurations, which composes nothing twice."""

import copy
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

_MOST_BASES = 64
_LAST_OF_HYDRA = ("hydra.run.", "hydra.sweep.")  # keys that nothing looks at while composing
_OTHER_FILES = "hydra.searchpath"  # a word after which other files are read


class Bases:
    """Compositions without the single keys that words set; the ones last asked for are kept.

    To compose is to read and merge some twenty files; to copy is a tenth of that.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[object, DictConfig] = OrderedDict()

    def copy_of(self, key: object) -> DictConfig | None:
        """A copy of what is known under a key, or `None`."""
        if key not in self._known:
            return None
        self._known.move_to_end(key)
        return copy.deepcopy(self._known[key])

    def keep(self, key: object, base: DictConfig) -> None:
        """Keep a copy under a key, and forget what was not asked for the longest."""
        self._known[key] = copy.deepcopy(base)
        if len(self._known) > _MOST_BASES:
            self._known.popitem(last=False)


class Loader(ConfigLoaderImpl):
    """Hydra's loader, spared from composing once more what has been composed already.

    Composing takes longer than the rounds of a small run, copying does not.
    """

    def __init__(self, search_path: ConfigSearchPath, bases: Bases | None = None) -> None:
        """Read the files of a search path, each once.

        Args:
            search_path: where they are.
            bases: of the same files, where other loaders share them.
        """
        super().__init__(search_path)
        self._bases = bases or Bases()
        self._offered: dict[tuple[str, ...], DictConfig] = {}

    def offer(self, words: Sequence[str], config: DictConfig) -> None:
        """Keep a copy of the configuration of a run for when Hydra asks for these words."""
        self._offered[tuple(words)] = copy.deepcopy(config)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """See `ConfigLoader`; what was offered is handed out once."""
        if run_mode == RunMode.RUN and (known := self._offered.pop(tuple(overrides), None)):
            return known
        return super().load_configuration(
            config_name, overrides, run_mode, from_shell, validate_sweep_overrides
        )

    def _load_configuration_impl(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Hydra's own in two steps: a base, which may be known, and single keys set in it."""
        parsed = OverridesParser.create().parse_overrides(overrides)
        if any(override.key_or_group == _OTHER_FILES for override in parsed):
            return super()._load_configuration_impl(
                config_name, overrides, run_mode, from_shell, validate_sweep_overrides
            )
        if validate_sweep_overrides:
            self.validate_sweep_overrides_legal(parsed, run_mode, from_shell)
        config = self._base(config_name, [w for w in parsed if not self._sets_a_key(w)], run_mode)
        single = [w for w in parsed if self._sets_a_key(w) and not w.is_sweep_override()]
        self._apply_overrides_to_config(single, config)
        _record(parsed, config.hydra)
        return config

    def _base(self, name: str | None, words: Sequence[Override], mode: RunMode) -> DictConfig:
        """What the files come to with the options that words choose."""
        texts = [str(word.input_line) for word in words]
        key = name, tuple(texts), mode, JobRuntime.instance().get("name"), version.getbase()
        base = self._bases.copy_of(key)
        if base is None:
            base = super()._load_configuration_impl(
                name, texts, mode, validate_sweep_overrides=False
            )
            self._bases.keep(key, base)
        return base

    def _sets_a_key(self, override: Override) -> bool:
        """Whether a word is applied once all files are merged, as in Hydra's `Overrides`."""
        key = override.key_or_group
        if key.startswith(("hydra.", "hydra/")):
            return key.startswith(_LAST_OF_HYDRA)
        if override.is_sweep_override():
            return True  # nothing is applied
        return not self.repository.group_exists(key) or isinstance(override.value(), dict)


def _record(words: Sequence[Override], hydra: Any) -> None:
    """Write into Hydra's node what it says of all words, and of here and now."""
    own = [word for word in words if not word.is_hydra_override()]
    hydra.overrides.task = [word.input_line for word in own]
    hydra.overrides.hydra = [word.input_line for word in words if word.is_hydra_override()]
    with open_dict(hydra):
        for name in hydra.job.env_copy:
            hydra.job.env_set[name] = os.environ[name]
    hydra.runtime.cwd = str(Path.cwd())
    rules = hydra.job.config.override_dirname
    hydra.job.override_dirname = get_overrides_dirname(
        own, rules.exclude_keys, rules.item_sep, rules.kv_sep
    )
