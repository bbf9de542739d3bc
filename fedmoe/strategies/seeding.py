"""Where the experts of a mixture begin: at the local models of clients that pull alike.

Experts that start at random lock on to whatever they first happen to fit, and need restarts as
IFCA does. After a few rounds of a single model, clients whose data follow one rule pull it in
one direction (the idea of clustered federated learning, Sattler et al., arXiv 1910.01991): the
directions of their updates are clustered, and each expert begins at the mean local model of a
cluster.

Letters: C clients, E experts, P parameters of a model.
"""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmoe.models import Parameters

_STARTS = 10  # of k-means


class Seeds(NamedTuple):
    """Where experts begin.

    Attributes:
        experts: E models, (E, ...) by name.
        cluster_C: whose mean local model each is: the expert of each client; -1 for none.
    """

    experts: Parameters
    cluster_C: NDArray[np.int64]


def seed_experts(
    average: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    weight_C: NDArray[np.float64],
    num_experts: int,
    seed: int,
    cluster_C: NDArray[np.int64] | None = None,
) -> Seeds:
    """E models to begin with.

    Args:
        average: the model that the clients' training is measured from, (...) by name.
        trained: the clients' models, (C, ...) by name.
        weight_C: the clients' weights in the mean of their cluster.
        num_experts: E; with fewer clients, several experts begin alike.
        seed: of the clustering.
        cluster_C: the clients' clusters, where they are known; -1 for a client in none. By
            default those of the directions of the clients' updates.
    """
    clients = len(weight_C)
    if cluster_C is None:
        moved = [(trained[name] - value).reshape(clients, -1) for name, value in average.items()]
        cluster_C = cluster_directions(torch.cat(moved, dim=1), num_experts, seed)
    is_member_EC = torch.arange(num_experts).unsqueeze(1) == torch.from_numpy(cluster_C)
    member_EC = is_member_EC * torch.from_numpy(weight_C)
    share_EC = member_EC / member_EC.sum(dim=1, keepdim=True).clamp_min(1e-30)
    missing = member_EC.sum(dim=1) == 0
    share_EC[missing] = torch.from_numpy(weight_C / weight_C.sum())
    experts = {
        name: torch.tensordot(share_EC.to(trained[name]), trained[name], dims=1).to(value.dtype)
        for name, value in average.items()
    }
    return Seeds(experts, cluster_C)


def cluster_directions(update_CP: Tensor, num_clusters: int, seed: int) -> NDArray[np.int64]:
    """Each client's cluster, (C,), by k-means of the updates scaled to length 1.

    Args:
        update_CP: what each client's training changed.
        num_clusters: at most; there are no more than clients.
        seed: of k-means' starts.
    """
    from sklearn.cluster import KMeans  # slow to import, and needed once a run
    from sklearn.exceptions import ConvergenceWarning

    length_C1 = torch.linalg.vector_norm(update_CP, dim=1, keepdim=True).clamp_min(1e-30)
    direction_CP = (update_CP / length_C1).double().cpu().numpy()
    means = KMeans(min(num_clusters, len(direction_CP)), n_init=_STARTS, random_state=seed)
    with warnings.catch_warnings():  # clients that are all alike are fewer clusters, as is right
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(means.fit_predict(direction_CP), dtype=np.int64)
