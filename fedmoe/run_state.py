"""What a run is made of besides its configuration and data, all of which a checkpoint keeps."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedmoe.clients.models import evaluation_of
from fedmoe.clients.requests import EvaluateRequest
from fedmoe.errors import RunError
from fedmoe.messages.arrays import to_record
from fedmoe.standing import Standing
from fedmoe.strategies.sampling import seeded_random
from fedmoe.strategies.state import restore_strategy, strategy_state
from fedmoe.tracking import load_checkpoint, save_checkpoint

Arrays = dict[str, NDArray[Any]]


class PrivateState(Protocol):
    """Where clients' private arrays can be saved from and restored to."""

    def state(self) -> Arrays:
        """Arrays by path."""
        ...

    def restore(self, arrays: Arrays) -> None:
        """Undo `state`."""
        ...


@dataclass
class RunState:
    """The server's strategy and standing, and what the clients keep.

    Attributes:
        strategy: with whatever it remembers between rounds.
        standing: the global model, totals and scores.
        clients: the clients' private arrays, where this process holds them; else `None`.
        saved_round: the round of the newest checkpoint; -1 for none.
        torn: whether a run has ended amid a round, so that records may go beyond `standing`, and
            so may what is in memory.
    """

    strategy: Strategy
    standing: Standing
    clients: PrivateState | None = None
    saved_round: int = -1
    torn: bool = False

    def save(self, run_dir: Path) -> bool:
        """Write a checkpoint, if there is none of this round; returns whether it was written."""
        if self.saved_round == self.standing.round:
            return False
        strategy_arrays, strategy_values = strategy_state(self.strategy)
        arrays: Arrays = {f"global/{k}": a.numpy() for k, a in self.standing.arrays.items()}
        arrays |= {f"strategy/{k}": np.asarray(a) for k, a in strategy_arrays.items()}
        if self.clients is not None:
            arrays |= {f"clients/{k}": a for k, a in self.clients.state().items()}
        values = {"standing": self.standing.as_json(), "strategy": strategy_values}
        save_checkpoint(run_dir, self.standing.round, arrays, values)
        self.saved_round = self.standing.round
        return True

    def load(self, run_dir: Path) -> None:
        """Go back to a run's newest checkpoint.

        Raises:
            RunError: there is none, or none that can be read.
        """
        checkpoint = load_checkpoint(run_dir)
        groups: dict[str, Arrays] = {"global": {}, "strategy": {}, "clients": {}}
        for path, array in checkpoint.arrays.items():
            group, _, name = path.partition("/")
            groups[group][name] = array
        values = checkpoint.state["standing"]
        self.standing = Standing.from_json(to_record(groups["global"]), values)
        restore_strategy(self.strategy, groups["strategy"], checkpoint.state["strategy"])
        if self.clients is not None:
            self.clients.restore(groups["clients"])
        self.saved_round, self.torn = checkpoint.round, True

    def sent_to_evaluate(
        self, grid: Grid, client_of: Callable[[int], int], seed: int, client: int | None = None
    ) -> EvaluateRequest:
        """What a client, or else just any, would be sent to evaluate now.

        Args:
            grid: with the clients behind it.
            client_of: the client behind a node id.
            seed: of the experiment, for strategies that sample.
            client: which one.

        Raises:
            RunError: nothing.
        """
        number, arrays = self.standing.round, self.standing.arrays
        with seeded_random(seed, number, 1):
            sent = self.strategy.configure_evaluate(number, arrays, ConfigRecord(), grid)
        for message in sent:
            asked = client_of(message.metadata.dst_node_id)
            if client is None or asked == client:
                return evaluation_of(message, asked)
        whom = "nobody" if client is None else f"others than client {client}"
        raise RunError(f"the strategy asks {whom} to evaluate: there is no model to show")
