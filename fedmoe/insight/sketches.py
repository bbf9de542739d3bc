"""Which clients pull a model the same way, from sketches of their updates.

Clients that follow one rule move the model that they share in like directions, clients of
different rules in different ones (Sattler et al., arXiv 1910.01991, who bipartition clients by the
cosines of their updates). Here all clusters are found at once, by average linkage of the
cosines' distances; how many there are, and whether there are any, by the silhouette
(Rousseeuw, Journal of Computational and Applied Mathematics 20, 1987): the mean over clients of
(b - a) / max(a, b), a being the mean distance from the others of its cluster and b that from the
nearest other cluster.

On digits and synthetic tasks of one rule (IID, Dirichlet, nearly IID) the best silhouette of two
to eight clusters of 40 clients was .28 at most in the first four rounds, with groups of unlike
rules .30 to .37 in the first and .40 to .63 later; hence `LEAST`.

Letters: K clients, m numbers of a sketch.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST = 0.35  # silhouette; with less there is one cluster
_MOST = 8  # clusters that are looked for


class SketchClusters(NamedTuple):
    """Who goes with whom.

    Attributes:
        label_K: each client's cluster, in the order of their first members; -1 for a client that
            told nothing. All 0 where there is one cluster.
        silhouette: of the best division into several; 0 with too few clients.
    """

    label_K: NDArray[np.int64]
    silhouette: float


def cluster_sketches(sketch_Km: NDArray[np.floating], most: int = _MOST) -> SketchClusters:
    """Find the clusters.

    Args:
        sketch_Km: of norm 1, or 0 for a client that told nothing.
        most: clusters at most.
    """
    from scipy.cluster.hierarchy import fcluster, linkage  # slow to import
    from scipy.spatial.distance import squareform

    sketch_Km = np.asarray(sketch_Km, dtype=np.float64)
    label_K = np.full(len(sketch_Km), -1, dtype=np.int64)
    told = np.flatnonzero(sketch_Km.any(axis=1))
    label_K[told] = 0
    if len(told) < 3 or most < 2:
        return SketchClusters(label_K, 0.0)
    distance_TT = np.clip(1 - sketch_Km[told] @ sketch_Km[told].T, 0, 2)
    np.fill_diagonal(distance_TT, 0)
    tree = linkage(squareform(distance_TT, checks=False), "average")
    found = [
        fcluster(tree, count, "maxclust") - 1 for count in range(2, min(most, len(told) - 1) + 1)
    ]
    worth = [silhouette(distance_TT, label_T) for label_T in found]
    best = int(np.argmax(worth))
    if worth[best] >= LEAST:
        _, first, label_T = np.unique(found[best], return_index=True, return_inverse=True)
        label_K[told] = np.argsort(np.argsort(first))[label_T]
    return SketchClusters(label_K, worth[best])


def silhouette(distance_TT: NDArray[np.float64], label_T: NDArray[np.int64]) -> float:
    """The mean over clients; that of a client alone is 0.

    Args:
        distance_TT: between clients.
        label_T: their clusters, all from 0 on with somebody in it.
    """
    member_TG = np.eye(int(label_T.max()) + 1)[label_T]
    size_G = member_TG.sum(axis=0)
    if len(size_G) < 2:
        return 0.0
    total_TG = distance_TT @ member_TG
    own_T = size_G[label_T]
    a_T = (total_TG * member_TG).sum(axis=1) / np.maximum(own_T - 1, 1)
    b_T = np.where(member_TG > 0, np.inf, total_TG / size_G).min(axis=1)
    worth_T = (b_T - a_T) / np.maximum(np.maximum(a_T, b_T), np.finfo(np.float64).tiny)
    return float(np.where(own_T > 1, worth_T, 0).mean())
