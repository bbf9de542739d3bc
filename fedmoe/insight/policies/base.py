"""What a policy of the MetaLearner is: it reads the memory, and advises clients."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from fedmoe.data.federation import Ints
from fedmoe.insight.guidance import Guidance
from fedmoe.insight.memory import Memory

State = tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]  # arrays, and plain values


NOTHING = Guidance()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What policies know of the experiment besides insights.

    Attributes:
        seed: of what they draw.
        learning_rate: that clients train with unless they are told otherwise.
        momentum: of the clients' gradient descent.
        keeps_momentum: whether momentum goes on from round to round.
        num_experts: that the strategy's mixture has; `None` where there is no mixture.
        rank: directions in which clients tell how classes spread.
        batch_size: that clients train with; `None` if it is not known.
    """

    seed: int = 0
    learning_rate: float = 1.0
    momentum: float = 0.0
    keeps_momentum: bool = False
    num_experts: int | None = None
    rank: int = 24
    batch_size: int | None = None


class Policy(ABC):
    """One thing that the MetaLearner learns.

    Attributes:
        name: in the configuration.
        reads: names of the payloads that it reads.
        setting: the experiment's, once the learner has been prepared for one.
        decisions: what it decided in the last round and why, for the run's records; plain values.
        suspects: by client, why what it told is not believed.
    """

    name: ClassVar[str]
    reads: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.setting = Setting()
        self.decisions: dict[str, Any] = {}
        self.suspects: Mapping[int, str] = {}

    def answered(self, client_of: Mapping[int, int | None]) -> None:
        """Who answered of those that were advised; told before `learn`.

        Args:
            client_of: by the id that `advise` was asked with, the client that it turned out to
                be; `None` if no insight came back.
        """
        del client_of

    @abstractmethod
    def learn(self, memory: Memory, round: int) -> None:
        """Learn from all that is remembered, at the end of a round."""

    def advise(self, client_id: int) -> Guidance:
        """What a client is to be told; the same object for clients that are told the same.

        Args:
            client_id: below 0 for one that nobody knows yet, each another.
        """
        del client_id
        return NOTHING

    def select(self, memory: Memory, round: int, clients: Ints, count: int) -> Ints | None:
        """Who is to train in a round, before it.

        Args:
            memory: of the rounds before.
            round: that begins.
            clients: (N,) ids of all that are there; below 0 as in `advise`.
            count: how many are to train, 1 to N - 1.

        Returns:
            (count,) places in `clients`, or `None` to leave it to others.
        """
        del memory, round, clients, count
        return None

    def clusters(self, clients: Ints) -> Ints | None:
        """Which clients have data that follow one rule.

        Args:
            clients: (N,) ids; below 0 as in `advise`.

        Returns:
            (N,) their clusters, from 0; -1 for who is in none; `None` if there is one rule alone,
            or the policy does not look for any.
        """
        del clients
        return None

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
