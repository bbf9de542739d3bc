"""A Flower `Grid` without a network: whole cohorts are answered in this process.

Flower's simulation starts workers, stores messages and polls; here a phase's messages are
answered in one call, so that a cohort trains as one batch and stays stacked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Message
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe.clients import Clients, Experiment
from fedmoe.clients.states import StackedStates
from fedmoe.data.federation import Ints
from fedmoe.messages.replies import Replies
from fedmoe.simulations.cohort_grid import CohortGrid
from fedmoe.simulations.shards import answer_in_shards


class InProcessGrid(CohortGrid):
    """Delivers messages to clients of this process and returns their replies at once.

    Attributes:
        experiment: what the clients have in common.
        states: the clients' private arrays.
    """

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment.data.num_clients)
        self.experiment, self.states = experiment, StackedStates()

    @override
    def answer(self, messages: Sequence[Message], clients: Ints) -> Replies:
        """See `CohortGrid`."""
        return answer_in_shards(Clients(self.experiment, self.states), messages, clients)

    def state(self) -> dict[str, NDArray[Any]]:
        """All clients' private arrays, for a checkpoint."""
        return self.states.state()

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Give the clients their private arrays back."""
        self.states.restore(arrays)
