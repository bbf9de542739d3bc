"""The clusters of clients that several policies go by.

Letters: K clients.
"""

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
