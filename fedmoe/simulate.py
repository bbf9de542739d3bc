"""The command `fedmoe-simulate`, also `python -m fedmoe.simulate`.

Hydra runs the jobs; round it stand a check of the whole configuration before anything runs, so
that a mistake is one line and exit code 2, and the table that ends a sweep.
"""

import gc
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedmoe.config import from_hydra
from fedmoe.configuration.launching import launch, leave_to_hydra, only_runs
from fedmoe.configuration.planning import Plan, checked_plan
from fedmoe.configuration.resuming import resumed_config
from fedmoe.configuration.words import from_command_line
from fedmoe.errors import ConfigError, FedmoeError
from fedmoe.heap import leave, quick_start
from fedmoe.offline import be_quiet
from fedmoe.schema import LanConfig

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says.

    Args:
        argv: words and flags without the program's name; by default the process's own.

    Returns:
        The exit code: 0 done, 2 a wrong configuration, 130 Ctrl-C, else a failed run.
    """
    be_quiet()
    arguments = list(sys.argv[1:] if argv is None else argv)
    with _hydra_raises() as full:
        try:
            return _run(arguments, full)
        except KeyboardInterrupt:
            _say("interrupted")
            return INTERRUPTED
        except SystemExit as stop:  # Hydra's and argparse's way to end, after --help too
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Exception as error:
            return _report(error, full)
        finally:
            gc.unfreeze()


def command() -> NoReturn:
    """Run `main` as a process of its own and end it."""
    leave(main())


def job_dir(number: Any, overrides: Any) -> str:
    """Name a sweep's job: its number and what it varies, short and safe in a file name.

    Args:
        number: of the job in its sweep.
        overrides: `key-value` joined by `+`.
    """
    items = [item.partition("-") for item in str(overrides).split("+") if item]
    words = [f"{key.rpartition('.')[2]}{dash}{value}" for key, dash, value in items]
    safe = "".join(
        c if c.isascii() and (c.isalnum() or c in "._+-") else "_" for c in "+".join(words)
    )
    return f"{number}-{safe[:60]}".rstrip("-+._")


# Here and not in main: another launcher's worker imports this module and never calls main.
OmegaConf.register_new_resolver("fedmoe_job_dir", job_dir, replace=True)


# -------------------------------------------------------------------------- the job


class SweepJobError(FedmoeError):
    """A job of a sweep failed, and has been reported where it failed."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Job:
    """What Hydra calls for every run.

    Attributes:
        error: why a lone run failed. Hydra would announce an exception with a line of its own.
    """

    def __init__(self, full: bool = False) -> None:
        """Report errors with their traceback where `full` says so."""
        self.error: Exception | None = None
        self._full = full

    def __call__(self, config: DictConfig) -> float | None:
        """Run one experiment; return what a sweeper is to optimise."""
        try:
            return _simulate(config)
        except Exception as error:
            node = HydraConfig.get()
            if node.mode != RunMode.MULTIRUN:
                self.error = error
                return None
            code = _report(error, self._full, f"job {node.job.num}: ")
            raise SweepJobError(code) from None


def _simulate(config: DictConfig) -> float | None:
    node = HydraConfig.get()
    words = from_command_line(node.overrides.task)
    experiment, run_dir = from_hydra(config, words), Path(node.runtime.output_dir)
    if experiment.resume is not None:
        experiment = resumed_config(experiment, words)
        with suppress(OSError):
            run_dir.rmdir()  # Hydra's new folder; the run goes on in its own
    if isinstance(experiment.runtime, LanConfig):
        from fedmoe.lan.launch import serve  # late: few want it

        summary = serve(experiment, run_dir, {word.key for word in words})
    else:
        with quick_start():
            from fedmoe.simulations import run_experiment  # late: imports torch and flwr

        summary = run_experiment(experiment, run_dir)
    objective = summary.get("objective")
    return None if objective is None else float(objective)


# ------------------------------------------------------------------------- the run


def _run(arguments: Sequence[str], full: bool) -> int:
    options = get_args_parser().parse_intermixed_args(arguments)
    job = Job(full)
    passes_by = options.help or options.hydra_help or options.shell_completion
    if passes_by or options.experimental_rerun is not None:
        leave_to_hydra(arguments, options.overrides, options.overrides, job)
        return 0 if job.error is None else _report(job.error, full)
    with quick_start():
        plan = checked_plan(options)
    try:
        if only_runs(options):
            launch(plan, job)
        else:
            leave_to_hydra(arguments, options.overrides, plan.words, job)
    finally:
        table_code = _end_sweep(plan, full)
    return table_code if job.error is None else _report(job.error, full)


# -------------------------------------------------------------------- the last words


def _end_sweep(plan: Plan, full: bool) -> int:
    """Print the table of a sweep that has begun, however it ended."""
    if plan.sweep_dir is None or not plan.sweep_dir.is_dir():
        return 0
    resumed = any(word.startswith("resume=") for word in plan.words)
    if resumed and not any(path.is_dir() for path in plan.sweep_dir.iterdir()):
        return 0  # all jobs went on in the directories of earlier runs
    try:
        from fedmoe.report import print_sweep  # late: reads results with heavier tools

        print_sweep(plan.sweep_dir)
    except Exception as error:
        return _report(error, full)
    return 0


def _report(error: Exception, full: bool, prefix: str = "") -> int:
    """Say what went wrong: one line for a user's mistake, a traceback for a defect of ours."""
    if isinstance(error, SweepJobError):
        _say("error: a job of the sweep failed; see above")
        return error.exit_code
    expected = isinstance(error, FedmoeError | HydraException | OmegaConfBaseException)
    if full or not expected:
        traceback.print_exception(error)
    _say(f"error: {prefix}{str(error) or type(error).__name__}")
    if isinstance(error, FedmoeError):
        return error.exit_code
    return ConfigError.exit_code if expected else FedmoeError.exit_code


def _say(text: str) -> None:
    sys.stderr.write(f"fedmoe: {' '.join(text.splitlines())}\n")


@contextmanager
def _hydra_raises() -> Iterator[bool]:
    """Make Hydra raise and not exit by itself; yield whether the user asked for tracebacks."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield before == "1"
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


if __name__ == "__main__":
    # The importable module, not this copy of it: other launchers pickle its functions by name.
    from fedmoe.simulate import command as importable_command

    importable_command()
