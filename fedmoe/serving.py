"""The server of a federation: what every entry point runs, and what notebooks call.

`fedmoe-simulate` and Flower's ServerApp make one `Server` each and let it run; a notebook may
look at it, and let it run on.
"""

import logging
import numbers
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from flwr.serverapp.strategy import Strategy
from torch import nn

from fedmoe.clients import Client, Experiment
from fedmoe.clients.models import global_model
from fedmoe.clients.requests import EvaluateRequest
from fedmoe.clients.states import States
from fedmoe.configuration.parts import Parts, composed, counted
from fedmoe.errors import ConfigError, FedmoeError, RunError
from fedmoe.federation import Federation
from fedmoe.insight import Memory, MetaLearner
from fedmoe.models import Expert, Router
from fedmoe.ordered_grid import OrderedGrid
from fedmoe.run import FederationRun, conduct
from fedmoe.run_state import RunState
from fedmoe.schema import ExperimentConfig
from fedmoe.tracking import RunDirectory, configure_logging, open_run_directory

if TYPE_CHECKING:
    from fedmoe.simulations import InProcessGrid
    from fedmoe.simulations.ray_grid import RayGrid

_LOG = logging.getLogger("fedmoe.serving.Server")


class Server:
    """Strategy, grid and round loop of one federation.

    Data are loaded and clients are made when they are first asked for. A context manager, which
    ends the workers where there are any.

    Attributes:
        config: the experiment.
        federation: its data, grid and standing.
        directory: the run directory; `None` before the first `run`.
    """

    def __init__(
        self,
        num_clients: int | None = None,
        *,
        clients: Sequence[Client] = (),
        experts: Sequence[Expert] = (),
        router: Router | None = None,
        meta_learner: MetaLearner | None = None,
        overrides: Sequence[str] = (),
        config: ExperimentConfig | None = None,
        run_dir: Path | str | None = None,
        grid: OrderedGrid | None = None,
        **keywords: Any,
    ) -> None:
        """Compose the experiment; nothing is loaded yet.

        Args:
            num_clients: among how many clients the data are divided; by default as many as
                `clients`, or as the configuration says.
            clients: numbered from 0, whom this server is to take in; by default it makes its own.
            experts: of a mixture (`model=moe` goes without saying), all alike.
            router: of that mixture.
            meta_learner: learns from insights (`strategy=insight` goes without saying).
            overrides: words as on the command line: `["strategy=fedprox", "seed=1"]`.
            config: an experiment that is composed already; there are no words then.
            run_dir: where to write; by default a new folder below `./runs`.
            grid: of clients that are other processes; by default they are simulated.
            **keywords: as for `load_config`: `model="moe"`, `training__epochs=2`.

        Raises:
            ConfigError: one line that names the wrong word or part, and what is allowed.
            RunError: a run is to be resumed that is not there.
        """
        if config is not None and (overrides or keywords):
            raise ConfigError("config is composed already: it takes no overrides or keywords")
        wanted = counted(num_clients, clients)
        parts = Parts(
            num_clients=wanted if grid is None else None,
            experts=experts, router=router, meta_learner=meta_learner,
        )  # fmt: skip
        self.config = parts.written_into(config) if config else composed(overrides, keywords, parts)
        self.federation = Federation(self.config, wanted, meta_learner, grid)
        self.directory: RunDirectory | None = None
        self._run_dir = None if run_dir is None else Path(run_dir)
        if clients:
            self.clients = [client.join(self) for client in clients]

    @property
    def experiment(self) -> Experiment:
        """Configuration, data and model.

        Raises:
            FedmoeError: the data cannot be had or divided as asked, or there is no such model.
        """
        return self.federation.experiment

    @property
    def grid(self) -> "OrderedGrid | InProcessGrid | RayGrid":
        """Whom messages are sent by.

        Raises:
            ConfigError: Ray is not installed, or its cluster is not to be had.
        """
        return self.federation.grid

    @property
    def state(self) -> RunState:
        """Strategy and standing; those of a checkpoint where a run is resumed.

        Raises:
            RunError: there is no checkpoint to resume from.
        """
        return self.federation.state

    @property
    def strategy(self) -> Strategy:
        """The Flower strategy."""
        return self.state.strategy

    @property
    def states(self) -> States:
        """The clients' private arrays; on Ray a copy, since they live in the workers.

        Raises:
            RunError: they are kept by other processes.
        """
        self.state  # noqa: B018  a run that is resumed brings them back
        if isinstance(self.grid, OrderedGrid):
            raise RunError("the clients are other processes, and keep to themselves")
        return self.grid.states

    @cached_property
    def clients(self) -> list[Client]:
        """The clients, those that were handed over or others."""
        return [Client(number).join(self) for number in range(self.experiment.data.num_clients)]

    def run(self, rounds: int | None = None) -> dict[str, Any]:
        """Run on from where this server stands, and leave a run directory behind.

        Args:
            rounds: how many more; by default those that the configuration has left.

        Returns:
            The summary, as in `summary.json`.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once all is written; `run` then goes on.
            FedmoeError: bad data or configuration, or a run that cannot go on. The next `run`
                begins at the last checkpoint.
        """
        if rounds is not None and not (isinstance(rounds, numbers.Integral) and rounds >= 1):
            raise ConfigError(f"rounds={rounds}: must be a whole number of at least 1")
        if self.directory is None:
            self.directory = open_run_directory(self.config, self._run_dir)
        directory = self.directory
        with directory, configure_logging(self.config.tracking, directory.path / "run.log"):
            self._load(directory)
            config, state, grid = self.config, self.state, self.grid
            if rounds is not None:
                config = replace(config, rounds=state.standing.round + int(rounds))
            if isinstance(grid, OrderedGrid):
                nodes = len(list(grid.get_node_ids()))
                _LOG.info("%d nodes; results go to %s", nodes, directory.path)
            run = FederationRun(self.experiment, config, state, grid, directory, grid.client_id)
            self.federation.began = True
            try:
                return conduct(run)
            finally:
                if state.torn:  # what is in memory may be half a round
                    self.close()

    def sent_to(self, client: int | None = None) -> EvaluateRequest:
        """What a client, or else just any, would now be sent to evaluate.

        Raises:
            RunError: nothing.
        """
        grid, seed = self.grid, self.config.seed
        return self.state.sent_to_evaluate(grid, grid.client_id, seed, client)

    @property
    def model(self) -> nn.Module:
        """The global model, a copy on the CPU, to predict with.

        Raises:
            RunError: with this strategy there is none, each client has its own.
        """
        made = global_model(self.experiment, self.sent_to())
        if made is None:
            raise RunError(
                f"strategy={self.config.strategy.name} has no global model; each client has its "
                "own: server.clients[0].model()"
            )
        return made

    @property
    def meta_learner(self) -> MetaLearner:
        """What learns from the clients' insights.

        Raises:
            RunError: this strategy has no such thing.
        """
        learner = getattr(self.strategy, "meta_learner", None)
        if not isinstance(learner, MetaLearner):
            raise RunError(
                f"strategy={self.config.strategy.name} has no MetaLearner; insights are exchanged "
                "with strategy=insight"
            )
        return learner

    @property
    def memory(self) -> Memory:
        """The insights that are remembered; raises as `meta_learner` does."""
        return self.meta_learner.memory

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A record for each round so far, the lines of `metrics.jsonl`."""
        return [] if self.directory is None else self.directory.read_lines("metrics.jsonl")

    def close(self) -> None:
        """End the workers, if there are any; whatever is asked next starts others."""
        self.federation.close(None if self.directory is None else self.directory.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _load(self, directory: RunDirectory) -> None:
        """Load the data, and leave word if they are not to be had."""
        try:
            self.experiment  # noqa: B018
        except FedmoeError as error:
            failed = {"name": self.config.name, "status": "failed", "reason": str(error)}
            directory.write_json("config.json", asdict(self.config))
            directory.write_json("summary.json", failed)
            raise
