"""Runtimes that simulate a federation: in this process, or on Ray."""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmoe.clients import Experiment, load_experiment
from fedmoe.config import to_json
from fedmoe.errors import FedmoeError
from fedmoe.run import FederationRun, conduct
from fedmoe.schema import ExperimentConfig, RayConfig
from fedmoe.simulations.context_grid import ContextGrid
from fedmoe.simulations.inprocess import InProcessGrid
from fedmoe.tracking import RunDirectory, configure_logging

if TYPE_CHECKING:
    from fedmoe.simulations.ray_grid import RayGrid

__all__ = ["ContextGrid", "InProcessGrid", "run_experiment"]


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
        config_json = to_json(config)
        # In a notebook, files and registered models may have changed since the last run.
        load_experiment.cache_clear()
        try:
            experiment = load_experiment(config_json)
        except FedmoeError as error:
            failed = {"name": config.name, "status": "failed", "reason": str(error)}
            directory.write_json("config.json", asdict(config))
            directory.write_json("summary.json", failed)
            raise
        with closing(build_grid(experiment)) as grid:
            return conduct(FederationRun(experiment, grid, directory, grid.client_id, clients=grid))


def build_grid(experiment: Experiment) -> "InProcessGrid | RayGrid":
    """The grid that `runtime` names.

    Raises:
        ConfigError: Ray is not installed, or its cluster is not to be had.
    """
    runtime = experiment.config.runtime
    if not isinstance(runtime, RayConfig):
        return InProcessGrid(experiment)
    from fedmoe.simulations.ray_grid import RayGrid

    return RayGrid(experiment, runtime)
