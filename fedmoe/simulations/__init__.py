"""Runtimes that simulate a federation: in this process, or on Ray."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmoe.clients import Experiment
from fedmoe.schema import ExperimentConfig, RayConfig
from fedmoe.serving import Server
from fedmoe.simulations.context_grid import ContextGrid
from fedmoe.simulations.inprocess import InProcessGrid

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
    with Server(config=config, run_dir=run_dir) as server:
        return server.run()


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
