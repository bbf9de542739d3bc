"""Tables of finished runs: `python -m fedmoe.report RUN_OR_SWEEP_DIR`.

For a run, its summary. For a sweep (`-m` on the command line of `fedmoe.simulate`), a row per
job, and one per setting over its seeds; both are also written to `sweep.md` and `sweep.json`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmoe.errors import FedmoeError, RunError
from fedmoe.tracking.files import to_json, write_atomic
from fedmoe.tracking.records import (
    format_bytes,
    format_number,
    format_seconds,
)
from fedmoe.tracking.run_directory import MARKER
from fedmoe.tracking.summary import print_summary, short_path
from fedmoe.tracking.sweep import (
    Job,
    SeedGroup,
    collect_jobs,
    differing_settings,
    measured,
    over_seeds,
    read_summary,
)
from fedmoe.tracking.tables import Table, markdown, show


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report that the command line asks for.

    Args:
        arguments: the words after the program's name; those it was started with if `None`.

    Returns:
        The exit code: 0, or 2 if the folder is not there or holds no results.
    """
    parser = argparse.ArgumentParser(prog="python -m fedmoe.report", description="Show results.")
    parser.add_argument("directory", type=Path, help="a run directory, or that of a sweep")
    directory = parser.parse_args(arguments).directory
    try:
        _print_report(directory)
    except (FedmoeError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def print_sweep(sweep_dir: Path) -> None:
    """Print the results of all jobs of a sweep; write them to `sweep.md` and `sweep.json`.

    Raises:
        RunError: if no subfolder holds a job.
        OSError: if the two files cannot be written.
    """
    jobs = collect_jobs(sweep_dir)
    if not jobs:
        raise RunError(f"neither a run nor a sweep of runs: {sweep_dir}")
    settings = differing_settings(jobs)
    groups = over_seeds(jobs, settings)
    tables = [_job_table(jobs, settings)]
    if groups:
        tables.append(_seed_table(groups, [key for key in settings if key != "seed"]))
    # To the files first: a reader who closes the pipe early must not cost them.
    write_atomic(sweep_dir / "sweep.md", "\n".join(map(markdown, tables)).encode())
    record = _sweep_record(jobs, settings, groups)
    write_atomic(sweep_dir / "sweep.json", (to_json(record, indent=2) + "\n").encode())
    show(tables, f"written to {short_path(sweep_dir)}: sweep.md, sweep.json")


def _print_report(directory: Path) -> None:
    if not directory.is_dir():
        raise RunError(f"no such directory: {directory}")
    path = directory / "summary.json"
    if path.exists():
        try:
            print_summary(read_summary(path), directory)
        except (ValueError, KeyError) as error:
            raise RunError(f"damaged summary: {path}: {error}") from error
    elif (directory / MARKER).exists():
        raise RunError(f"no summary.json in {directory}: the run was killed, or still runs")
    else:
        print_sweep(directory)


def _job_table(jobs: Sequence[Job], settings: Sequence[str]) -> Table:
    measures = measured(jobs)
    headings = ["job", *map(_heading, settings), "status"]
    headings += [f"{model}\n{measure}\n(worst\ndecile)" for measure, model in measures]
    routed = any(job.summary.get("routing") for job in jobs)
    headings += ["experts\nalive", "routing\nnecessity"] if routed else []
    headings += ["bytes", "time"]
    rows = []
    for job in jobs:
        row = [job.name, *(_value(job.settings, key) for key in settings)]
        row.append(job.status)
        for measure, model in measures:
            mean = job.score(model, measure, "mean")
            worst = job.score(model, measure, "worst_decile")
            present = mean is not None or worst is not None
            row.append(f"{format_number(mean)} ({format_number(worst)})" if present else "-")
        row += _routing(job) if routed else []
        rows.append([*row, *_costs(job)])
    notes = [f"job {job.name} failed: {job.reason}" for job in jobs if job.failed]
    return Table(f"{len(jobs)} jobs, last evaluated round, test parts", headings, rows, notes)


def _seed_table(groups: Sequence[SeedGroup], settings: Sequence[str]) -> Table:
    measures = measured([job for group in groups for job in group.jobs])
    columns = [
        (measure, model, key) for measure, model in measures for key in ("mean", "worst_decile")
    ]
    headings = [*map(_heading, settings), "seeds"]
    for measure, model, key in columns:
        headings.append(f"{model}\n{measure}" + ("\n(worst\ndecile)" if key != "mean" else ""))
    rows = []
    for group in groups:
        row = [*(_value(group.settings, key) for key in settings), str(len(group.jobs))]
        for measure, model, key in columns:
            score = group.score(model, measure, key)
            row.append(" ± ".join(map(format_number, score)) if score else "-")
        rows.append(row)
    return Table("Mean ± standard deviation over seeds", headings, rows, [])


def _heading(key: str) -> str:
    """A setting as it is typed: `strategy=fedavg` sets `strategy.name`."""
    return key.removesuffix(".name")


def _value(settings: dict[str, Any], key: str) -> str:
    if key not in settings:
        return "-"
    value = settings[key]
    return value if isinstance(value, str) else json.dumps(value)


def _routing(job: Job) -> list[str]:
    """Experts alive, and what is lost under random routing; dashes without a router."""
    routing = job.summary.get("routing") or {}
    shares = routing.get("importance")
    alive = f"{len(shares) - routing['dead_experts']} of {len(shares)}" if shares else "-"
    return [alive, format_number(routing.get("necessity"))]


def _costs(job: Job) -> list[str]:
    """Bytes both ways, for want of room, and time."""
    traffic, seconds = job.summary.get("bytes"), job.summary.get("seconds")
    return [
        format_bytes(traffic["up"] + traffic["down"]) if traffic else "-",
        "-" if seconds is None else format_seconds(seconds),
    ]


def _sweep_record(
    jobs: Sequence[Job], settings: Sequence[str], groups: Sequence[SeedGroup]
) -> dict[str, Any]:
    """What `sweep.json` holds: numbers in full, for other programs."""
    results = ("final", "best", "bytes", "seconds", "objective", "routing")
    return {
        "settings": list(settings),
        "jobs": [
            {
                "job": job.name,
                "settings": {key: job.settings.get(key) for key in settings},
                "status": job.status,
                "reason": job.reason or None,
                **{key: job.summary.get(key) for key in results},
            }
            for job in jobs
        ],
        "seeds": [
            {
                "settings": group.settings,
                "jobs": [job.name for job in group.jobs],
                "scores": group.scores(),
            }
            for group in groups
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
