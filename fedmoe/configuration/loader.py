"""Hydra's loader of configurations, which reads and composes nothing twice."""

import copy
import os
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobRuntime
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from typing_extensions import override

_MOST_BASES = 64
_LAST_OF_HYDRA = ("hydra.run.", "hydra.sweep.")  # keys that nothing looks at while composing
_OTHER_FILES = "hydra.searchpath"  # a word after which other files are read


class Copies:
    """Values of this process, each handed out as a copy of its own; those last asked for are kept.

    They are kept as bytes, which Python makes a copy of in a third of the time of `deepcopy`, and
    which its garbage collector need not look through.
    """

    def __init__(self, most: int | None = None) -> None:
        """Know nothing yet.

        Args:
            most: how many are kept; all where none is given.
        """
        self._most = most
        self._known: OrderedDict[object, bytes] = OrderedDict()

    def copy_of(self, key: object) -> Any:
        """A copy of what is known under a key, or `None`."""
        if key not in self._known:
            return None
        self._known.move_to_end(key)
        return pickle.loads(self._known[key])  # noqa: S301  our own bytes, which never left us

    def keep(self, key: object, value: object) -> None:
        """Keep a copy under a key, and forget what was not asked for the longest."""
        try:
            self._known[key] = pickle.dumps(value)
        except (pickle.PicklingError, AttributeError, TypeError):
            return  # a schema of the user's, of a class inside a function: made anew each time
        if self._most is not None and len(self._known) > self._most:
            self._known.popitem(last=False)


class Known:
    """What is known of some files.

    Attributes:
        bases: compositions without the single keys that words set. To compose is to merge some
            twenty files; to copy is a thirtieth of that.
        files: what has been read.
    """

    def __init__(self) -> None:
        self.bases, self.files = Copies(_MOST_BASES), Copies()


class Repository(ConfigRepository):
    """Hydra's files, each read once: Hydra reads them all for every composition."""

    def __init__(self, search_path: ConfigSearchPath, files: Copies) -> None:
        super().__init__(search_path)
        self._files = files

    def __deepcopy__(self, memo: dict[int, Any]) -> "Repository":
        """A repository that can be given other files; Hydra makes one for each composition."""
        return copy.copy(self)

    @override
    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """See `ConfigRepository`; nothing is known of other files."""
        super().initialize_sources(config_search_path)
        self._files = Copies()

    @override
    def load_config(self, config_path: str) -> ConfigResult | None:
        """See `ConfigRepository`."""
        known: ConfigResult | None = self._files.copy_of(config_path)
        if known is None:
            known = super().load_config(config_path)
            if known is not None:
                self._files.keep(config_path, known)
        return known


class Loader(ConfigLoaderImpl):
    """Hydra's loader, spared from composing once more what has been composed already.

    Composing takes longer than the rounds of a small run, copying does not.
    """

    def __init__(self, search_path: ConfigSearchPath, known: Known | None = None) -> None:
        """Read the files of a search path, each once.

        Args:
            search_path: where they are.
            known: of the same files, where other loaders share it.
        """
        super().__init__(search_path)
        known = known or Known()
        self._bases = known.bases
        self.repository = Repository(search_path, known.files)
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
        if any(word.key_or_group == _OTHER_FILES for word in parsed):
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
        base: DictConfig | None = self._bases.copy_of(key)
        if base is None:
            base = super()._load_configuration_impl(
                name, texts, mode, validate_sweep_overrides=False
            )
            self._bases.keep(key, base)
        return base

    def _sets_a_key(self, word: Override) -> bool:
        """Whether a word is applied once all files are merged, as in Hydra's `Overrides`."""
        key = word.key_or_group
        if key.startswith(("hydra.", "hydra/")):
            return key.startswith(_LAST_OF_HYDRA)
        if word.is_sweep_override():
            return True  # nothing is applied
        return not self.repository.group_exists(key) or isinstance(word.value(), dict)


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
