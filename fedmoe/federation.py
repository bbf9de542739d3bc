"""What a server runs: data, grid and standing, made when they are first asked for."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fedmoe.clients import Experiment, load_experiment
from fedmoe.config import to_json
from fedmoe.errors import ConfigError
from fedmoe.insight import MetaLearner
from fedmoe.messages.arrays import to_record
from fedmoe.ordered_grid import OrderedGrid
from fedmoe.run_state import RunState
from fedmoe.schema import ExperimentConfig
from fedmoe.standing import Standing
from fedmoe.strategies import build_strategy

if TYPE_CHECKING:
    from fedmoe.simulations import InProcessGrid
    from fedmoe.simulations.ray_grid import RayGrid


class Federation:
    """The parts of one federation, which stand until they are given up.

    Attributes:
        config: the experiment.
        began: whether rounds have been run, so that a state that is made anew is torn from them.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        num_clients: int | None,
        learner: MetaLearner | None,
        grid: OrderedGrid | None,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            config: the experiment; `resume` says where the first state comes from.
            num_clients: how many there must be, if that was said.
            learner: what learns from insights, if it was handed over.
            grid: of clients that are other processes; `None` simulates them.
        """
        self.config, self.began = config, False
        self._num_clients, self._learner, self._given = num_clients, learner, grid
        self._go_on_from = None if config.resume is None else Path(config.resume)

    @cached_property
    def experiment(self) -> Experiment:
        """Configuration, data and model; raises as `Server.experiment`."""
        # In a notebook, files and registered models may have changed since they were last read.
        load_experiment.cache_clear()
        found = load_experiment(to_json(self.config))
        wanted = self._num_clients
        if wanted is not None and wanted != found.data.num_clients:
            raise ConfigError(
                f"{wanted} clients were asked for, but {found.data.name} has "
                f"{found.data.num_clients} natural clients; there must be as many"
            )
        return found

    @cached_property
    def grid(self) -> "OrderedGrid | InProcessGrid | RayGrid":
        """Whom messages are sent by; raises as `Server.grid`."""
        if self._given is not None:
            return self._given
        from fedmoe.simulations import build_grid  # late: that package runs the server

        return build_grid(self.experiment)

    @cached_property
    def state(self) -> RunState:
        """Strategy and standing; raises as `Server.state`."""
        experiment = self.experiment
        made = RunState(
            build_strategy(self.config, experiment.data.task, self._learner),
            Standing(to_record(experiment.shared)),
            None if isinstance(self.grid, OrderedGrid) else self.grid,
            torn=self.began,
        )
        if self._go_on_from is not None:
            made.load(self._go_on_from)
        return made

    def close(self, directory: Path | None) -> None:
        """End the workers, if there are any; whatever is asked next starts others.

        Args:
            directory: the run directory, whose checkpoint the next state comes from.
        """
        grid = self.__dict__.pop("grid", None)
        state: RunState | None = self.__dict__.pop("state", None)
        if state is not None and directory is not None and state.saved_round >= 0:
            self._go_on_from = directory
        if grid is not None and grid is not self._given:
            grid.close()
