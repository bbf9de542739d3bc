"""A Flower `Grid` over Ray: shards of the cohort on actors that keep their clients' data.

Weights go out once a machine through Ray's object store. Where the strategy is mergeable, each
worker sends one mean back, so that traffic grows with the workers and not with the clients.

Letters: K clients of the federation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Error, Message
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe.clients import Experiment
from fedmoe.clients.states import StackedStates, restored_state, saved_state
from fedmoe.data import Ints, LazyFederation
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.profiling import current_profile, section
from fedmoe.schema import RayConfig
from fedmoe.simulations.cohort_grid import CohortGrid, clients_of
from fedmoe.simulations.parcels import Parcel, opened_parts, parcels
from fedmoe.simulations.ray_pool import WorkerPool
from fedmoe.simulations.ray_worker import Answered


class RayGrid(CohortGrid):
    """Clients in Ray actors; a context manager that ends them, and the Ray that it started.

    Attributes:
        owner_K: the worker that each client belongs to, for the whole run.
        pool: the workers.
    """

    def __init__(self, experiment: Experiment, config: RayConfig) -> None:
        super().__init__(experiment.data.num_clients)
        self.pool = WorkerPool(experiment, config)
        self.owner_K = dealt(experiment, len(self.pool))

    @override
    def close(self) -> None:
        """End the workers."""
        self.pool.close()

    @override
    def answer(self, messages: Sequence[Message], clients: Ints) -> Replies:
        """See `CohortGrid`."""
        with section("pack"):
            given = parcels(messages, self.pool.put)
            shares = self._shares(given)
            answered = self.pool.answer(shares)
            self._profile([own for own in answered if isinstance(own, Answered)])
            parts: list[Part] = []
            errors: dict[int, Error] = {}
            for share, own in zip(shares, answered, strict=True):
                for index, parcel in enumerate(share):
                    if isinstance(own, Error):
                        errors |= dict.fromkeys(parcel.places.tolist(), own)
                        continue
                    answer = own.answers[index]
                    parts += opened_parts(answer, parcel.places)
                    for row, (code, reason) in answer.errors.items():
                        errors[int(parcel.places[row])] = Error(code, reason)
            plain = {place: Message(e, reply_to=messages[place]) for place, e in errors.items()}
            return Replies(messages, parts, plain)

    def _shares(self, given: Sequence[Parcel]) -> list[list[Parcel]]:
        """What of some parcels is for each worker's clients."""
        shares: list[list[Parcel]] = [[] for _ in range(len(self.pool))]
        for parcel in given:
            owner_C = self.owner_K[clients_of(parcel.nodes)]
            for worker in np.unique(owner_C).tolist():
                shares[worker].append(parcel.take(np.flatnonzero(owner_C == worker)))
        return shares

    def _profile(self, answered: Sequence[Answered]) -> None:
        """Count the time of the worker that the others waited for."""
        profile = current_profile()
        if profile is not None and answered:
            slowest = max(answered, key=lambda one: sum(one.seconds.values()))
            for name, seconds in slowest.seconds.items():
                profile.add(name, seconds)

    @property
    def states(self) -> StackedStates:
        """The clients' private arrays as they are now: a copy, since they live in the workers."""
        states = StackedStates()
        states.restore(self.state())
        return states

    def state(self) -> dict[str, NDArray[Any]]:
        """All clients' private arrays, for a checkpoint: by client, whoever owns them."""
        return saved_state(self.pool.everything())

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Give the clients their private arrays back; the workers may be other than before."""
        kept = restored_state(arrays)
        for worker in range(len(self.pool)):
            own = []
            for key, clients, named in kept:
                mine = np.flatnonzero(self.owner_K[clients] == worker)
                own.append((key, clients[mine], {n: array[mine] for n, array in named.items()}))
            self.pool.restore(worker, [one for one in own if len(one[1])])


def dealt(experiment: Experiment, workers: int) -> Ints:
    """Clients dealt to workers, those with most samples first, so that each has as much to do."""
    if isinstance(experiment.data, LazyFederation):  # only making them would tell how many
        return np.arange(experiment.data.num_clients) % workers
    counts_K = experiment.data.parts["train"].counts_K
    order = np.argsort(-counts_K, kind="stable")
    turn = np.arange(len(order)) % (2 * workers)  # there and back: 0 1 2 2 1 0 0 1 ...
    owner_K = np.empty(len(order), dtype=np.int64)
    owner_K[order] = np.where(turn < workers, turn, 2 * workers - 1 - turn)
    return owner_K
