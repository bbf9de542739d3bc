"""What a policy of the MetaLearner is: it reads the memory, and advises clients."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from numpy.typing import NDArray

from fedmoe.insight.guidance import Guidance
from fedmoe.insight.memory import Memory

State = tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]  # arrays, and plain values


class Policy(ABC):
    """One thing that the MetaLearner learns.

    Attributes:
        name: in the configuration.
        reads: names of the payloads that it reads.
        decisions: what it decided in the last round and why, for the run's records; plain values.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.decisions: dict[str, Any] = {}

    @abstractmethod
    def learn(self, memory: Memory, round: int) -> None:
        """Learn from all that is remembered, at the end of a round."""

    def advise(self, client_id: int) -> Guidance:
        """What a client is to be told; the same object for clients that are told the same."""
        del client_id
        return Guidance()

    def state(self) -> State:
        """What `learn` cannot make of the memory alone; `restore` takes it back."""
        return {}, {}

    def restore(
        self, memory: Memory, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
    ) -> None:
        """Go back to a saved state; of a policy without one, all follows from the memory."""
        del arrays, values
        if memory.rounds:
            self.learn(memory, int(memory.rounds[-1]["round"][0]))
