"""The clusters of clients that several policies go by.

Letters: K clients, G clusters, N numbers that clusters may go by.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmoe.insight.clusters import Clusters, cluster_clients
from fedmoe.insight.memory import Memory

CLUSTERED_BY = ("prototypes", "traces")  # payloads
CLUSTER_ARRAYS = ("prototype_count", "prototype_sum", "class_trace")


def clusters_in(memory: Memory, most: int | None = None) -> tuple[NDArray[np.int64], Clusters]:
    """The clusters of all clients that told enough to be compared, and who these are, (K,).

    Args:
        memory: where what they told is.
        most: clusters at most.
    """
    clients, told = memory.collect(*CLUSTER_ARRAYS)
    if not len(clients):
        return clients, Clusters(clients, 0, 0.0)
    count_KO, sum_KOD, trace_KO = (told[name] for name in CLUSTER_ARRAYS)
    return clients, cluster_clients(count_KO, sum_KOD, trace_KO, most)


def labels_in(
    memory: Memory, clients: NDArray[np.int64], of: Literal["federation", "cluster"]
) -> NDArray[np.int64]:
    """Which clients are told of each other, (K,) labels from 0; -1 for who is told of nobody.

    Args:
        memory: where what they told is.
        clients: (K,) ids.
        of: all together, or each cluster for itself.
    """
    if of == "federation":
        return np.zeros(len(clients), dtype=np.int64)
    found_clients, found = clusters_in(memory)
    label_of = dict(zip(found_clients.tolist(), found.label_K.tolist(), strict=True))
    return np.array([label_of.get(client, -1) for client in clients.tolist()], dtype=np.int64)


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
