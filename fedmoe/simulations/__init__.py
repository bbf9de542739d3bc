"""Runtimes that simulate a federation on one machine."""

import json
import logging
from pathlib import Path
from typing import Any

from fedmoe.clients import Experiment, load_experiment
from fedmoe.config import to_json
from fedmoe.errors import FedmoeError
from fedmoe.run import FederationRun
from fedmoe.schema import ExperimentConfig
from fedmoe.simulations.inprocess import InProcessGrid
from fedmoe.tracking import (
    RunDirectory,
    configure_logging,
    plot_learning,
    plot_partition,
    print_summary,
)

__all__ = ["InProcessGrid", "run_experiment"]

_LOG = logging.getLogger("fedmoe.simulations")


def run_experiment(config: ExperimentConfig, run_dir: Path) -> dict[str, Any]:
    """Simulate one experiment and leave a run directory behind.

    Args:
        config: the experiment; with `resume` the run directory named there is continued.
        run_dir: where to write; if another run has it, a sibling is taken.

    Returns:
        The run's summary, as in `summary.json`.

    Raises:
        FedmoeError: bad data or configuration, or a run that cannot go on.
    """
    if config.resume is not None:
        directory = RunDirectory.reopen(Path(config.resume))
    else:
        directory = RunDirectory.claim(run_dir)
    with directory, configure_logging(config.tracking, directory.path / "run.log"):
        _limit_threads(config)
        config_json = to_json(config)
        # In a notebook, files and registered models may have changed since the last run.
        load_experiment.cache_clear()
        try:
            experiment = load_experiment(config_json)
        except FedmoeError as error:
            failed = {"name": config.name, "status": "failed", "reason": str(error)}
            directory.write_json("config.json", json.loads(config_json))
            directory.write_json("summary.json", failed)
            raise
        grid = InProcessGrid(config_json, experiment.data.num_clients)
        run = FederationRun(experiment, grid, directory, grid.client_id, clients=grid)
        try:
            summary = run.run()
        except KeyboardInterrupt:
            _LOG.warning("interrupted; go on with resume=%s", directory.path)
            raise
        finally:
            if config.tracking.plots:
                draw(experiment, directory)
        print_summary(summary, directory.path)
    return summary


def draw(experiment: Experiment, directory: RunDirectory) -> None:
    """Draw who has which labels, and how learning went."""
    from fedmoe.data import class_counts

    data = experiment.data
    plot_partition(
        class_counts(data), data.task.class_names, data.client_names,
        directory.path / "partition.png",
    )  # fmt: skip
    records = directory.read_lines("metrics.jsonl")
    if records:
        title = f"{experiment.config.name} on {data.name} ({data.num_clients} clients)"
        plot_learning(records, directory.path / "learning.png", title)


def _limit_threads(config: ExperimentConfig) -> None:
    import torch

    torch.set_num_threads(config.training.num_threads)
