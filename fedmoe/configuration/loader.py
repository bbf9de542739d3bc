"""Hydra's loader of configurations, which composes nothing twice."""

import copy
from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.types import RunMode
from omegaconf import DictConfig


class Loader(ConfigLoaderImpl):
    """Hydra's loader, spared from composing once more what has been composed already.

    Composing takes longer than the rounds of a small run, copying does not.
    """

    def __init__(self, search_path: ConfigSearchPath) -> None:
        super().__init__(search_path)
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
