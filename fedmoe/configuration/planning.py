"""What a command line asks Hydra for, checked as a whole before any of it runs."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from fedmoe.config import from_hydra
from fedmoe.configuration.composition import Composer
from fedmoe.configuration.words import Word, from_command_line, from_environment, merge
from fedmoe.errors import ConfigError

TASK_NAME = "simulate"


@dataclass(frozen=True)
class Plan:
    """What to give to Hydra.

    Attributes:
        words: the merged overrides.
        composer: what they were checked with.
        sweep: whether they make a sweep.
        sweep_dir: its directory, where that is known before its jobs are.
    """

    words: list[str]
    composer: Composer
    sweep: bool = False
    sweep_dir: Path | None = None


def checked_plan(options: argparse.Namespace) -> Plan:
    """Check every configuration that the command line asks for, before any of them runs.

    Raises:
        ConfigError: the first mistake found.
    """
    if options.multirun and options.cfg:
        raise ConfigError("--multirun and --cfg do not go together; leave one out")
    JobRuntime.instance().set("name", TASK_NAME)  # a part of every configuration
    composer = Composer(options.config_path, options.config_dir, options.config_name)
    layers = [*from_environment(os.environ), *from_command_line(options.overrides)]
    words = merge(layers, composer.is_group)
    texts = [word.text for word in words]
    master = composer.compose(words, sweep=True)
    if not (options.multirun or master.hydra.mode == RunMode.MULTIRUN):
        swept = any(_parse(composer, word).is_sweep_override() for word in words)
        config = composer.compose(words) if swept else master  # refuses what is swept
        composer.loader.offer(texts, config)
        _check(config, words)
        return Plan(texts, composer)
    _check_jobs(composer, master, words)
    sweep_dir, pins = _pins(composer, master, words)
    return Plan([*texts, *pins, "hydra.mode=MULTIRUN"], composer, sweep=True, sweep_dir=sweep_dir)


def _check_jobs(composer: Composer, master: DictConfig, words: Sequence[Word]) -> None:
    """Check each job of Hydra's own sweeper; with another one the jobs check themselves."""
    sweeper = master.hydra.sweeper
    if not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        return
    params = from_command_line(f"{key}={value}" for key, value in (sweeper.params or {}).items())
    hydras = [word for word in words if _is_hydra(word)]
    parsed, shown = [], {}
    for word in [*params, *(word for word in words if not _is_hydra(word))]:
        override = _parse(composer, word)
        parsed.append(override)
        shown[word.key] = None if override.is_sweep_override() else word.shown
    for number, texts in enumerate(BasicSweeper.split_arguments(parsed, None)[0]):
        own = [Word(w.text, shown[w.key] or w.shown) for w in from_command_line(texts)]
        _check(composer.compose([*hydras, *own]), own, number)


def _check(config: DictConfig, words: Sequence[Word], number: int = 0) -> None:
    """Check a configuration as its job would see it, `${hydra:job.num}` and all."""
    with open_dict(config):
        config.hydra.job.num, config.hydra.job.id = number, str(number)
        config.hydra.runtime.output_dir = "."
    with _current(config):
        from_hydra(config, words)


def _pins(
    composer: Composer, master: DictConfig, words: Sequence[Word]
) -> tuple[Path | None, list[str]]:
    """Settle what each job of a sweep would otherwise resolve for itself, and differently.

    A job that varies the strategy has another `name`, and so would have another sweep directory.
    """
    fixed = [w for w in words if not _is_hydra(w) and not _parse(composer, w).is_sweep_override()]
    excluded = [*master.hydra.job.config.override_dirname.exclude_keys, *(w.key for w in fixed)]
    pins = [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(excluded)}]"]
    try:
        with _current(master):
            directory = Path(str(master.hydra.sweep.dir)).absolute()  # a worker may be elsewhere
    except OmegaConfBaseException:  # it names something that only a job knows
        return None, pins
    literal = QuotedString(str(directory), Quote.single).with_quotes()
    return directory, [*pins, f"hydra.sweep.dir={literal}"]


def _is_hydra(word: Word) -> bool:
    return word.key.startswith(("hydra.", "hydra/"))


def _parse(composer: Composer, word: Word) -> Override:
    return OverridesParser.create(composer.loader).parse_overrides([word.text])[0]


@contextmanager
def _current(config: DictConfig) -> Iterator[None]:
    """Make a configuration the one that `${hydra:...}` refers to."""
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.set_config(config)
    try:
        yield
    finally:
        instance.cfg = before
