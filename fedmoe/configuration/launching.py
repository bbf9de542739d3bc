"""Giving what was planned to Hydra.

What runs is given to Hydra's own runner together with our loader, which has composed the
configuration already; `--help`, `--cfg` and the like go through `hydra.main`.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager

import hydra
from hydra import version
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import TaskFunction

from fedmoe.configuration.composition import CONFIG_NAME, CONFIG_PATH, VERSION_BASE
from fedmoe.configuration.planning import TASK_NAME, Plan
from fedmoe.errors import RunError

_FLAGS_OF_A_RUN = frozenset({"config_dir", "config_name", "config_path", "multirun", "overrides"})


def launch(plan: Plan, task: TaskFunction) -> None:
    """Run a checked plan: its one job, or all jobs of its sweep.

    Raises:
        RunError: a launcher's worker process was killed.
        Exception: whatever a job raised, or Hydra; it exits by itself unless HYDRA_FULL_ERROR=1.
    """
    version.setbase(VERSION_BASE)
    runner = Hydra(TASK_NAME, plan.composer.loader)
    GlobalHydra.instance().initialize(runner)
    try:
        run = runner.multirun if plan.sweep else runner.run
        run(plan.composer.name, task, plan.words)
    except BrokenExecutor as error:  # joblib's, which names no job and gives up all of them
        raise RunError(
            "a worker process of the sweep was killed, perhaps for want of memory, and the sweep "
            "with it; what is finished is kept"
        ) from error
    finally:
        GlobalHydra.instance().clear()


def only_runs(options: argparse.Namespace) -> bool:
    """Whether Hydra's flags ask for nothing but a run or a sweep."""
    return not any(vars(options)[name] for name in vars(options).keys() - _FLAGS_OF_A_RUN)


def leave_to_hydra(
    arguments: Sequence[str], overrides: Sequence[str], words: Sequence[str], task: TaskFunction
) -> None:
    """Let Hydra do what its flags say.

    Args:
        arguments: the whole command line.
        overrides: those of its arguments that are no flags.
        words: to take the place of the overrides.
        task: for what becomes a run after all.
    """
    with _command_line([*_flags(arguments, overrides), *words]):
        hydra.main(CONFIG_PATH, CONFIG_NAME, VERSION_BASE)(task)()


def _flags(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The arguments that are no overrides, in their order."""
    words = list(overrides)
    flags = []
    for argument in reversed(arguments):  # from the end: a flag's value precedes equal words
        if words and argument == words[-1]:
            words.pop()
        elif argument != "--":
            flags.append(argument)
    return flags[::-1]


@contextmanager
def _command_line(arguments: Sequence[str]) -> Iterator[None]:
    """Let Hydra read these arguments: it knows no other way in than `sys.argv`."""
    before = sys.argv
    sys.argv = [*before[:1], *arguments]
    try:
        yield
    finally:
        sys.argv = before
