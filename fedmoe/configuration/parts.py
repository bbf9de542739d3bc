"""Parts that are handed over as objects, written into a configuration.

What a run is made of must be in its configuration, or it could neither travel to workers nor be
continued; so an `Expert` or a `MetaLearner` that a notebook hands over becomes the keys that
describe it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from fedmoe.clients import Client
from fedmoe.config import load_config, validate
from fedmoe.configuration.dividing import divided_among
from fedmoe.configuration.resuming import resumed_config
from fedmoe.configuration.words import from_command_line, from_keywords
from fedmoe.data.federation import Task
from fedmoe.errors import ConfigError
from fedmoe.insight import MetaLearner
from fedmoe.models import REGISTRY, Expert, Router, router_table
from fedmoe.models.expert import ModuleFactory, check_alike
from fedmoe.schema import ExperimentConfig


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What stands in place of words.

    Attributes:
        num_clients: among how many clients the data are divided.
        experts: of a mixture, all alike.
        router: of that mixture.
        meta_learner: of insight exchange.
    """

    num_clients: int | None = None
    experts: Sequence[Expert] = ()
    router: Router | None = None
    meta_learner: MetaLearner | None = None

    def implied(self) -> list[tuple[str, str]]:
        """The groups whose option goes without saying."""
        found = [("model", "moe")] if self.experts or self.router else []
        return [*found, ("strategy", "insight")] if self.meta_learner else found

    def written_into(self, config: ExperimentConfig) -> ExperimentConfig:
        """The configuration with these parts.

        Raises:
            ConfigError: they do not go together, or not with the configuration.
        """
        if self == Parts():
            return config
        if self.num_clients is not None:
            config = divided_among(config, self.num_clients)
        table = asdict(config)
        if self.experts or self.router:
            _check(table, "model", "moe", "experts and routers are")
            table["model"] |= self._mixture()
        if self.meta_learner is not None:
            table["meta_learner"] = asdict(self.meta_learner.config)
            memory = self.meta_learner.memory
            table["insight"]["memory_rounds"] = memory.max_rounds
            table["insight"]["memory_bytes"] = memory.max_bytes
        return validate(table)

    def _mixture(self) -> dict[str, Any]:
        """Keys of `model=moe`."""
        keys: dict[str, Any] = {}
        if self.experts:
            check_alike(self.experts)
            first = self.experts[0]
            keys = {"num_experts": len(self.experts), "hidden": first.hidden, "expert": None}
            if first.module is not None:
                keys |= {"expert": _registered(first.module), "expert_options": {}}
        if self.router is not None:
            if keys.setdefault("num_experts", self.router.num_experts) != self.router.num_experts:
                raise ConfigError(
                    f"a router for {self.router.num_experts} experts, but there are "
                    f"{len(self.experts)}"
                )
            keys["router"] = router_table(self.router)
        return keys


def composed(overrides: Sequence[str], keywords: dict[str, Any], parts: Parts) -> ExperimentConfig:
    """The configuration of some words and parts, as `fedmoe-simulate` would have it.

    Args:
        overrides: words as on the command line.
        keywords: as for `load_config`.
        parts: they win over words.

    Raises:
        ConfigError: a wrong word, or parts that do not go with it.
        RunError: a run is to be resumed that is not there.
    """
    words = [*from_keywords(keywords), *from_command_line(overrides)]
    said = {word.key for word in words}
    implied = [f"{group}={option}" for group, option in parts.implied() if group not in said]
    config = load_config([*implied, *overrides], **keywords)
    if config.resume is not None:
        config = resumed_config(config, words)
    written = parts.written_into(config)
    if config.resume is not None and written != config:
        raise ConfigError(
            f"resume={config.resume}: clients, experts, router and meta_learner cannot differ "
            "from those of the run that is resumed"
        )
    return written


def counted(num_clients: int | None, given: Sequence[Client]) -> int | None:
    """How many clients are asked for; `None` for as many as there are.

    Raises:
        ConfigError: those that are given are not numbered from 0 in order, or not as many.
    """
    ids = [client.client_id for client in given]
    if ids != list(range(len(ids))):
        raise ConfigError(f"clients must be numbered 0 to {len(ids) - 1} in order, got {ids}")
    if ids and num_clients not in (None, len(ids)):
        raise ConfigError(f"num_clients={num_clients}: {len(ids)} clients are given")
    return len(ids) or num_clients


def _check(table: dict[str, Any], group: str, option: str, what: str) -> None:
    if (chosen := table[group]["name"]) != option:
        raise ConfigError(f"{group}={chosen}: {what} for {group}={option}")


def _registered(module: ModuleFactory) -> str:
    """Make a factory available as `model.expert=NAME`; returns the name."""
    name = getattr(module, "__name__", "expert")

    @REGISTRY.add(name)
    def made(task: Task) -> nn.Module:
        return module(task.num_features, task.num_outputs)

    return name
