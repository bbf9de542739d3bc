"""The command line that studies of many runs share."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import environment
from benchmarks.study.execution import prepare_environment

INTERRUPTED = 130  # the exit code after Ctrl-C


def study_parser(
    name: str, description: str, *, workers: int, quick: str
) -> argparse.ArgumentParser:
    """A parser of what every study takes.

    Args:
        name: of the study.
        description: what it does.
        workers: processes, unless it is told otherwise.
        quick: what is left of it with `--quick`.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--workers", type=int, default=workers, help="processes, of one thread each"
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--out", type=Path, help=f"docs/results; runs/{name} with --quick")
    parser.add_argument("--records", type=Path, default=Path("runs", f"{name}.jsonl"))
    parser.set_defaults(study=name)
    return parser


def parse(
    parser: argparse.ArgumentParser, words: Sequence[str] | None, counts: Sequence[str]
) -> argparse.Namespace:
    """The options; the environment is made fit for runs.

    Args:
        parser: of `study_parser`.
        words: of the command line.
        counts: options that are from 1, besides `workers`.
    """
    options = parser.parse_args(words)
    given = [getattr(options, name) for name in ("workers", *counts)]
    if any(number is not None and number < 1 for number in given):
        *most, last = (f"--{name.replace('_', '-')}" for name in (*counts, "workers"))
        parser.error(f"{', '.join(most)} and {last} are from 1")
    try:
        prepare_environment(environment())
    except ValueError as error:
        parser.error(str(error))
    if options.out is None:
        options.out = Path("runs", options.study) if options.quick else Path("docs", "results")
    return options


def command(name: str, words: Sequence[str] | None) -> list[str]:
    """What a study was called by, for its document."""
    return ["python", f"benchmarks/{name}.py", *(sys.argv[1:] if words is None else words)]
