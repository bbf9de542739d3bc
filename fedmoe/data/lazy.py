"""Clients whose samples are made when they are asked for, a cohort at a time.

What a client has follows from the experiment's seed and the client alone: it is the same whoever
else is made, in whatever order, in whichever process. So memory grows with the cohort and not
with the federation, and workers make their own clients' samples instead of receiving them.

Letters: K clients, C of them in a cohort, N samples of those together, D features, O outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedmoe.data.checking import checked_samples
from fedmoe.data.drawing import hash_keys
from fedmoe.data.federation import FederatedData, Floats, Ints, Part, Rows, Task, numbered
from fedmoe.data.split import cut
from fedmoe.errors import DataError

_OWNER_BITS, _KEY_BITS = np.uint64(24), np.uint64(40)


class Built(NamedTuple):
    """Some clients' samples, laid end to end.

    Attributes:
        x_ND: float32 features.
        y_N: int64 classes (N,), or float32 targets (N, O).
        count_C: int64 samples of each client.
    """

    x_ND: Floats
    y_N: Floats | Ints
    count_C: Ints


@dataclass(frozen=True, kw_only=True)
class LazyDataset:
    """What a source yields that makes each client's samples on demand.

    Attributes:
        name: of the data set.
        origin: `real` or `synthetic`.
        task: what is to be predicted.
        num_clients: K.
        build: makes the samples of a client, 0 to K - 1: features (n, D), and n classes or
            (n, O) targets. The same for the same client whenever it is called; what it raises
            is that client's failure.
        build_many: makes those of (C,) clients at once, where that is faster than `build` one
            by one; must give the same.
        num_samples: of all clients together, if known without making them.
    """

    name: str
    origin: str
    task: Task
    num_clients: int
    build: Callable[[int], tuple[ArrayLike, ArrayLike]]
    build_many: Callable[[Ints], Built] | None = None
    num_samples: int | None = None


@dataclass(kw_only=True)
class LazyFederation:
    """A federation that makes its clients' data on demand.

    Attributes:
        dataset: makes the samples.
        min_samples: fewest samples a client may have.
        validation_fraction: share of each client's samples for validation.
        test_fraction: share of each client's samples for testing.
        seed: shuffles each client's samples before they are cut into parts.
    """

    dataset: LazyDataset
    min_samples: int
    validation_fraction: float
    test_fraction: float
    seed: int
    _last: tuple[bytes, FederatedData] | None = field(default=None, init=False, repr=False)

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.dataset.name

    @property
    def origin(self) -> str:
        """See `Dataset.origin`; goes into every summary."""
        return self.dataset.origin

    @property
    def task(self) -> Task:
        """What is to be predicted."""
        return self.dataset.task

    @property
    def num_clients(self) -> int:
        """K."""
        return self.dataset.num_clients

    @property
    def num_samples(self) -> int | None:
        """Of all clients and parts together; `None` where only making them would tell."""
        return self.dataset.num_samples

    def client_name(self, client: int) -> str:
        """What to call a client in plots."""
        return numbered(client)

    def client(self, client: int, part: Part) -> tuple[Floats, Floats | Ints]:
        """One client's samples of one part: features (n, D) and targets."""
        return self.only(np.array([client])).client(0, part)

    def only(self, clients: Ints) -> FederatedData:
        """Make some clients' data: all their parts, in one pool.

        The last cohort is kept, since its parts are mostly asked for one after the other. No
        other is: to make samples costs less than to train on them once.

        Args:
            clients: (C,) which ones; the result's client c is `clients[c]`.

        Raises:
            DataError: there is no such client, or one of them cannot be made; names it.
        """
        key, last = clients.tobytes(), self._last
        if last is not None and last[0] == key:
            return last[1]
        self._last = last = None  # or there would be two cohorts at once
        made = self._made(clients)
        self._last = key, made
        return made

    def _made(self, clients: Ints) -> FederatedData:
        beyond = clients[(clients < 0) | (clients >= self.num_clients)]
        if len(beyond):
            raise DataError(f"{self.name}: no client {beyond[0]}, there are {self.num_clients}")
        built = _build(self.dataset, clients)
        poor = np.flatnonzero(built.count_C < self.min_samples)
        if len(poor):
            raise DataError(
                f"{self.name}: client {clients[poor[0]]} has {built.count_C[poor[0]]} samples, "
                f"partition.min_samples is {self.min_samples}"
            )
        rows = shuffled(built.count_C, clients, self.seed)
        return FederatedData(
            name=self.name,
            origin=self.origin,
            task=self.task,
            x_ND=built.x_ND,
            y_N=built.y_N,
            parts=cut(rows, self.validation_fraction, self.test_fraction),
            client_names=tuple(self.client_name(client) for client in clients.tolist()),
        )


def shuffled(count_C: Ints, clients: Ints, seed: int) -> Rows:
    """Each client's rows of a pool in which the clients' samples lie end to end, shuffled.

    The order depends on (seed, client, number of samples) alone.

    Args:
        count_C: samples of each client.
        clients: (C,) who they are.
        seed: of the order.
    """
    offsets = np.concatenate([[0], np.cumsum(count_C)])
    owner_N = np.repeat(np.arange(len(clients)), count_C)
    place_N = np.arange(len(owner_N)) - offsets[owner_N]
    key_N = hash_keys(seed, clients[owner_N], place_N)
    # One sort for all: by client, then by the key. Sorting two columns takes ten times as long.
    joint_N = (owner_N.astype(np.uint64) << _KEY_BITS) | (key_N >> _OWNER_BITS)
    return Rows(np.argsort(joint_N, kind="stable"), offsets)


def _build(dataset: LazyDataset, clients: Ints) -> Built:
    if dataset.build_many is not None:
        return dataset.build_many(clients)
    samples = [_build_one(dataset, client) for client in clients.tolist()]
    counts = np.array([len(x_nD) for x_nD, _ in samples], dtype=np.int64)
    x, y = zip(*samples, strict=True)
    return Built(np.concatenate(x), np.concatenate(y), counts)


def _build_one(dataset: LazyDataset, client: int) -> tuple[Floats, Floats | Ints]:
    try:
        x, y = dataset.build(client)
        return checked_samples(x, y, dataset.task)
    except DataError as error:
        raise DataError(f"{dataset.name}: client {client}: {error}") from error
    except Exception as error:  # whatever the user's own code may raise
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{dataset.name}: client {client}: {reason}") from error
