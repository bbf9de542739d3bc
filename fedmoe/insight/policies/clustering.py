"""The clusters of clients that several policies go by, and whom of them is not believed.

Letters: K clients, O classes, D features, G clusters, N numbers that clusters may go by.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.insight.clusters import Clusters, cluster_clients
from fedmoe.insight.memory import Memory
from fedmoe.insight.policies.robust import Vetted, unlike, vet_classes

CLUSTERED_BY = ("prototypes", "traces")  # payloads
CLUSTER_ARRAYS = ("prototype_count", "prototype_sum", "class_trace")


@dataclass(frozen=True)
class BelievedClusters(Clusters):
    """Clusters of those that are believed.

    Attributes:
        label_K: see `Clusters`; -1 for suspects by what they told of themselves, too. Suspects
            that are unlike the others have clusters of their own.
        weight_K: what a client's counts and sums are to be multiplied by, 0 to 1, so that no
            client is heard for many; 0 for those who are not believed.
        capped: ids of clients that count for less than the samples that they told of.
        suspects: by id, why a client is not believed.
    """

    weight_K: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    capped: tuple[int, ...] = ()
    suspects: dict[int, str] = field(default_factory=dict)


def clusters_in(
    memory: Memory, most: int | None = None
) -> tuple[NDArray[np.int64], BelievedClusters]:
    """The clusters of all clients that told enough to be compared, and who these are, (K,).

    Args:
        memory: where what they told is.
        most: clusters at most, without those that are unlike the others: these are in none then.
    """
    clients, told = memory.collect(*CLUSTER_ARRAYS)
    if not len(clients):
        return clients, BelievedClusters(clients, 0, 0.0)
    count_KO, sum_KOD, trace_KO = (told[name].astype(np.float64) for name in CLUSTER_ARRAYS)
    vetted = vet_classes(count_KO, sum_KOD, trace_KO)
    count_KO *= vetted.weight_K[:, None]
    sum_KOD *= vetted.weight_K[:, None, None]
    found = cluster_clients(count_KO, sum_KOD, vetted.trace_KO)
    odd = unlike(found.label_K)
    if most is not None and (odd or found.count > most):
        # A cluster of liars must not take the place of an honest one.
        for array in (count_KO, sum_KOD, vetted.trace_KO):
            array[list(odd)] = 0.0
        found = cluster_clients(count_KO, sum_KOD, vetted.trace_KO, most)
    return clients, _named(clients, found, vetted, vetted.suspects | odd)


def everybody_in(memory: Memory) -> tuple[NDArray[np.int64], BelievedClusters]:
    """One cluster of all clients that told class sums, and who these are, (K,).

    Suspects are in it, with weight 0: they are told what others are.
    """
    clients, told = memory.collect(*CLUSTER_ARRAYS[:2])
    if not len(clients):
        return clients, BelievedClusters(clients, 0, 0.0)
    vetted = vet_classes(*(told[name].astype(np.float64) for name in CLUSTER_ARRAYS[:2]))
    one = Clusters(np.zeros(len(clients), dtype=np.int64), 1, 0.0)
    return clients, _named(clients, one, vetted, vetted.suspects)


def _named(
    clients: NDArray[np.int64], found: Clusters, vetted: Vetted, suspects: dict[int, str]
) -> BelievedClusters:
    """With ids in the place of places."""
    return BelievedClusters(
        found.label_K, found.count, found.log_odds, vetted.weight_K,
        tuple(clients[vetted.capped].tolist()),
        {int(clients[place]): suspects[place] for place in sorted(suspects)},
    )  # fmt: skip


def of_clients(
    clients: NDArray[np.int64], ids: NDArray[np.int64], values: NDArray[Any], missing: float
) -> NDArray[Any]:
    """(K,) what is known of some clients by others' order.

    Args:
        clients: (K,) ids.
        ids: whose the values are.
        values: one of each of `ids`.
        missing: for a client that is not among them.
    """
    value_of = dict(zip(ids.tolist(), values.tolist(), strict=True))
    found = [value_of.get(client, missing) for client in clients.tolist()]
    return np.array(found, dtype=values.dtype)


def renamed(
    clients: NDArray[np.int64],
    label_K: NDArray[np.int64],
    before: Mapping[int, int],
    numbers: int = 0,
) -> NDArray[np.int64]:
    """(K,) the clusters by the numbers of those before that they have most clients of.

    So what belongs to a cluster stays that of its clients when others join.

    Args:
        clients: (K,) ids.
        label_K: their clusters from 0; -1 for none.
        before: the numbers by client.
        numbers: how many there are at least; more where there are more clusters.
    """
    if not before:
        return label_K
    from scipy.optimize import linear_sum_assignment  # slow to import

    before_K = np.array([before.get(client, -1) for client in clients.tolist()], dtype=np.int64)
    count = int(label_K.max(initial=-1)) + 1
    most = max(count, numbers, int(before_K.max(initial=-1)) + 1)
    both_K = (before_K >= 0) & (label_K >= 0)
    common_GN = np.zeros((count, most))
    np.add.at(common_GN, (label_K[both_K], before_K[both_K]), 1)
    _, number_G = linear_sum_assignment(common_GN, maximize=True)
    return np.where(label_K >= 0, np.append(number_G, -1)[label_K], -1)
