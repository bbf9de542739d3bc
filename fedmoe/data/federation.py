"""The records that data travel in: one pooled array, and which rows belong to whom.

All clients' samples lie in one pool, so that a cohort's batch is a single gather, on whatever
device; a client is a list of rows. Transformations of a client's data (rotation, permuted
labels) are applied to its own rows of the pool. A federation too large for that makes such a
pool for a few clients at a time: see `lazy`.

Letters: N samples in the pool, D features, O outputs, K clients, S public inputs.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Part = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be predicted from what.

    Attributes:
        kind: `classification` or `regression`.
        num_features: D.
        num_outputs: O, the number of classes, or of target values.
        class_names: what to call the classes in plots; empty for regression.
    """

    kind: Literal["classification", "regression"]
    num_features: int
    num_outputs: int
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a source yields, before it is divided among clients.

    Attributes:
        name: of the data set, as in the configuration.
        origin: `real`, `synthetic`, or `synthetic: NAME was not to be had (reason)`.
        task: what is to be predicted.
        x_ND: float32 features.
        y_N: int64 class indices (N,), or float32 targets (N, O).
        client_N: int64 natural client of each sample, 0 to K - 1, or `None`.
        client_names: K names of the natural clients, or empty.
        image_shape: (height, width) where each row of `x_ND` is an image, else `None`.
        truth: arrays that only a generator knows (such as true weights), for tests and studies.
        standardise: whether `load_federation` is to standardise features by the training parts.
    """

    name: str
    origin: str
    task: Task
    x_ND: Floats
    y_N: Floats | Ints
    client_N: Ints | None = None
    client_names: tuple[str, ...] = ()
    image_shape: tuple[int, int] | None = None
    truth: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    standardise: bool = False


@dataclass(frozen=True)
class Rows:
    """Rows of the pool by client: client k owns `order[offsets[k]:offsets[k + 1]]`.

    Attributes:
        order: int64 (n,) rows of the pool.
        offsets: int64 (K + 1,) rising from 0 to n.
    """

    order: Ints
    offsets: Ints

    def of(self, client: int) -> Ints:
        """The rows of one client, 0 to K - 1."""
        return self.order[self.offsets[client] : self.offsets[client + 1]]

    @property
    def counts_K(self) -> Ints:
        """Samples of each client."""
        return np.diff(self.offsets)

    def padded(self, clients: Ints) -> tuple[Ints, Ints]:
        """Rows of some clients as one matrix, for stacking.

        Args:
            clients: (C,) client indices.

        Returns:
            (C, n) rows, n being the largest count, padded with row 0; and (C,) the counts.
        """
        count_C = self.counts_K[clients]
        longest = int(count_C.max(initial=0))
        if not longest:
            return np.zeros((len(clients), 0), dtype=np.int64), count_C
        place = np.arange(longest)
        index = np.minimum(self.offsets[clients][:, None] + place, len(self.order) - 1)
        return np.where(place < count_C[:, None], self.order[index], 0), count_C

    @classmethod
    def pack(cls, rows: list[Ints]) -> "Rows":
        """Lay one list of rows per client end to end."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(own) for own in rows], out=offsets[1:])
        order = np.concatenate(rows) if rows else np.zeros(0)
        return cls(order.astype(np.int64), offsets)


@dataclass(frozen=True, kw_only=True)
class FederatedData:
    """Every client's data, ready to train on.

    Attributes:
        name: of the data set.
        origin: see `Dataset.origin`; goes into every summary.
        task: what is to be predicted.
        x_ND: float32 features of all samples.
        y_N: int64 classes (N,), or float32 targets (N, O).
        parts: the rows of each part; the parts are disjoint and cover the pool.
        client_names: K names, or empty where the clients have none of their own.
        group_K: int64 concept group of each client (rotation, permutation), or `None`.
        truth: see `Dataset.truth`.
        public_SD: float32 inputs that were held out for all to know; no client has them.
    """

    name: str
    origin: str
    task: Task
    x_ND: Floats
    y_N: Floats | Ints
    parts: dict[Part, Rows]
    client_names: tuple[str, ...] = ()
    group_K: Ints | None = None
    truth: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    public_SD: Floats | None = None

    @property
    def num_clients(self) -> int:
        """K."""
        return len(self.parts["train"].offsets) - 1

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.x_ND)

    def client_name(self, client: int) -> str:
        """What to call a client in plots."""
        return self.client_names[client] if self.client_names else numbered(client)

    def client(self, client: int, part: Part) -> tuple[Floats, Floats | Ints]:
        """One client's samples of one part: features (n, D) and targets."""
        rows = self.parts[part].of(client)
        return self.x_ND[rows], self.y_N[rows]


def numbered(client: int) -> str:
    """The name of a client that has none of its own."""
    return f"client {client}"
