"""Which clients mean the same by the same classes, from class means and how wide classes are.

Clients whose classes look alike are one cluster, however many samples of each class they have:
Dirichlet shares of one rule are one cluster, other names for the same images, or the same names
for turned ones, are several.

Model: the mean of n samples of a class is N(mu, t / n), t the class's trace of the covariance
spread over d effective dimensions. Where two clients mean the same by the class, the means' squared
distance q, in units of t / h with 1 / h = 1 / n_a + 1 / n_b, is about 1; where they do not, mu
differs as much as two classes of one client do, b on average, and it is about g = 1 + h b / t.
With p for the log odds that two clients are alike before anything is known,

    log odds = p + sum over classes that both have of d / 2 (log g - q (1 - 1 / g)).

Beginning with each client alone, the two most alike clusters are merged as long as the odds are
not below 1: greedy Bayesian agglomeration (Heller and Ghahramani, "Bayesian hierarchical
clustering", ICML 2005), with this ratio in place of their marginal likelihood over trees. What
clustered federated learning (Sattler et al., arXiv 1910.01991) reads from updates is read here
from what follows from the data alone, in the first round and without a number of clusters.

b is the mean over clients of their own classes' differences, none of which counts for more than
five times the median. t is each class's over all clients, drawn to that of all classes together;
d is a constant: estimated from the features' variances it is overconfident, since features go
together.

Letters: K clients, G clusters (of one client, at first), O classes, D features.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

_PRIOR_LOG_ODDS = 10.0
_DIMENSIONS = 10.0
_SHRINKAGE = 10.0  # degrees of freedom by which a class's trace is drawn to that of all
_LEAST = 1e-3  # of t, that other meanings are apart
_MOST_APART = 5.0  # times the median, that a client's classes count for being apart
_AT_ONCE = 100  # clients that are compared with each other; others join the clusters of these


@dataclass(frozen=True)
class Clusters:
    """Who goes with whom.

    Attributes:
        label_K: each client's cluster, in the order of their first members; -1 for a client that
            told of no class.
        count: how many clusters.
        log_odds: that the two most alike clusters are one, below 0; 0 with fewer than two.
    """

    label_K: NDArray[np.int64]
    count: int
    log_odds: float


class _Groups(NamedTuple):
    """What is known of each cluster.

    Attributes:
        count_GO: samples.
        sum_GOD: their sum.
        square_GO: its squared length.
    """

    count_GO: Doubles
    sum_GOD: Doubles
    square_GO: Doubles

    def take(self, chosen: "slice | NDArray[np.int64]") -> "_Groups":
        """Some of them."""
        return _Groups(*(array[chosen] for array in self))


class _Scales(NamedTuple):
    """What distances are measured by.

    Attributes:
        trace_O: t of each class.
        apart: b.
    """

    trace_O: Doubles
    apart: float


def cluster_clients(
    count_KO: Doubles, sum_KOD: Doubles, spread_KO: Doubles, most: int | None = None
) -> Clusters:
    """Find the clusters.

    Args:
        count_KO: samples of each class; 0 for one that is not told.
        sum_KOD: their sum.
        spread_KO: the sum of their squared distances from their mean.
        most: clusters at most; the most alike are merged until there are no more.
    """
    count_KO, sum_KOD, spread_KO = (
        np.asarray(array, dtype=np.float64) for array in (count_KO, sum_KOD, spread_KO)
    )
    label_K = np.full(len(count_KO), -1)
    told = np.flatnonzero(count_KO.sum(axis=1) > 0)
    if not len(told):
        return Clusters(label_K, 0, 0.0)
    # Those who told of most samples come first: the others are compared with their clusters.
    told = told[np.argsort(-count_KO[told].sum(axis=1), kind="stable")]
    own, scales = _measured(count_KO[told], sum_KOD[told], spread_KO)
    waiting = np.arange(len(told))
    groups, members = own.take(slice(0)), list[list[int]]()
    while len(waiting):
        now, waiting = waiting[:_AT_ONCE], waiting[_AT_ONCE:]
        both = _Groups(*map(np.concatenate, zip(groups, own.take(now), strict=True)))
        alone = [[client] for client in now.tolist()]
        at_most = None if len(waiting) else most
        groups, members, log_odds = _merged(both, [*members, *alone], scales, at_most)
        groups, waiting = _joining(groups, members, waiting, own, scales)
    if most is not None and len(members) > most:
        groups, members, log_odds = _merged(groups, members, scales, most)
    for label, clients in enumerate(sorted((told[one] for one in members), key=min)):
        label_K[clients] = label
    return Clusters(label_K, len(members), log_odds)


def _measured(count_KO: Doubles, sum_KOD: Doubles, spread_KO: Doubles) -> tuple[_Groups, _Scales]:
    """Those who told of a class as clusters of one, and what distances are measured by."""
    every = np.arange(count_KO.shape[1])
    freedom_O = np.maximum(count_KO - 1, 0).sum(axis=0)
    trace = float(spread_KO.sum() / max(freedom_O.sum(), 1))
    trace_O = (spread_KO.sum(axis=0) + _SHRINKAGE * trace) / (freedom_O + _SHRINKAGE)
    trace_O = np.maximum(trace_O, np.finfo(np.float64).tiny)
    product_KOO = sum_KOD @ sum_KOD.transpose(0, 2, 1)
    square_KO = product_KOO[:, every, every]
    # How far two classes of one client are apart beyond what their means' errors make of it.
    apart_KOO = _distances(count_KO, square_KO, count_KO, square_KO, product_KOO)
    inverse_KO = np.divide(1, count_KO, out=np.zeros_like(count_KO), where=count_KO > 0)
    error_KO = trace_O * inverse_KO
    apart_KOO = apart_KOO - error_KO[:, :, None] - error_KO[:, None, :]
    both_KOO = (count_KO[:, :, None] > 0) & (count_KO[:, None, :] > 0)
    weight_KOO = both_KOO / np.where(both_KOO, inverse_KO[:, :, None] + inverse_KO[:, None], 1)
    weight_KOO[:, every, every] = 0
    weight_K = weight_KOO.sum(axis=(1, 2))
    apart_K = (weight_KOO * apart_KOO).sum(axis=(1, 2)) / np.maximum(weight_K, 1e-12)
    if weight_K.any():  # one whose classes are absurdly far apart must not decide for all
        apart_K = np.minimum(apart_K, _MOST_APART * max(float(np.median(apart_K[weight_K > 0])), 0))
    apart = float(weight_K @ apart_K / max(weight_K.sum(), 1e-12))
    scales = _Scales(trace_O, max(apart, _LEAST * float(trace_O.mean())))
    return _Groups(count_KO, sum_KOD, square_KO), scales


def _distances(
    count_XA: Doubles, square_XA: Doubles, count_XB: Doubles, square_XB: Doubles, product: Doubles
) -> Doubles:
    """(X, A, B) squared distances of means, from counts, squared sums and products of sums."""
    count_XA1, count_X1B = np.maximum(count_XA, 1)[:, :, None], np.maximum(count_XB, 1)[:, None, :]
    ends = square_XA[:, :, None] / count_XA1**2 + square_XB[:, None, :] / count_X1B**2
    return np.asarray(np.maximum(ends - 2 * product / (count_XA1 * count_X1B), 0))


def _products(a: _Groups, b: _Groups) -> Doubles:
    """(O, A, B) of the sums of each class."""
    return np.asarray(a.sum_GOD.transpose(1, 0, 2) @ b.sum_GOD.transpose(1, 2, 0))


def _log_odds(a: _Groups, b: _Groups, product_OAB: Doubles, scales: _Scales) -> Doubles:
    """(A, B) that a cluster of one kind and one of the other are one."""
    count_OA, count_OB = a.count_GO.T, b.count_GO.T
    count_OA1, count_O1B = count_OA[:, :, None], count_OB[:, None, :]
    # 0 where one has none of the class.
    h_OAB = count_OA1 * count_O1B / np.maximum(count_OA1 + count_O1B, 1)
    distance_OAB = _distances(count_OA, a.square_GO.T, count_OB, b.square_GO.T, product_OAB)
    trace_O11 = scales.trace_O[:, None, None]
    q_OAB, g_OAB = h_OAB * distance_OAB / trace_O11, 1 + h_OAB * scales.apart / trace_O11
    evidence_OAB = np.log(g_OAB) - q_OAB * (1 - 1 / g_OAB)
    return np.asarray(_PRIOR_LOG_ODDS + _DIMENSIONS / 2 * evidence_OAB.sum(axis=0))


def _merged(
    groups: _Groups, members: list[list[int]], scales: _Scales, most: int | None
) -> tuple[_Groups, list[list[int]], float]:
    """Merge until nothing more is alike, and until there are `most` at most."""
    now = _Groups(*(array.copy() for array in groups))
    members, left = list(members), len(members)
    product_OGG = _products(now, now)  # the sums of what is merged add up, and so do these
    odds_GG = _log_odds(now, now, product_OGG, scales)
    np.fill_diagonal(odds_GG, -np.inf)
    alive_G = np.full(left, True)
    while left > 1:
        a, b = divmod(int(odds_GG.argmax()), len(odds_GG))
        if odds_GG[a, b] < 0 and (most is None or left <= most):
            break
        now.count_GO[a] += now.count_GO[b]
        now.sum_GOD[a] += now.sum_GOD[b]
        product_OGG[:, a] += product_OGG[:, b]
        product_OGG[:, :, a] += product_OGG[:, :, b]
        now.square_GO[a] = product_OGG[:, a, a]
        members[a] = members[a] + members[b]
        alive_G[b], left = False, left - 1
        odds_GG[b] = odds_GG[:, b] = -np.inf
        odds_G = _log_odds(now.take(slice(a, a + 1)), now, product_OGG[:, a : a + 1], scales)[0]
        odds_G[~alive_G], odds_G[a] = -np.inf, -np.inf
        odds_GG[a] = odds_GG[:, a] = odds_G
    kept = np.flatnonzero(alive_G)
    best = float(odds_GG.max()) if left > 1 else 0.0
    return now.take(kept), [members[one] for one in kept.tolist()], best


def _joining(
    groups: _Groups,
    members: list[list[int]],
    waiting: NDArray[np.int64],
    own: _Groups,
    scales: _Scales,
) -> tuple[_Groups, NDArray[np.int64]]:
    """Clients join the cluster that they are most alike, if any; returns who still waits."""
    if not len(waiting):
        return groups, waiting
    # At first these are the last of all clients, which are not copied.
    last = len(own.count_GO) - len(waiting)
    theirs = own.take(slice(last, None) if waiting[0] == last else waiting)
    odds_WG = _log_odds(theirs, groups, _products(theirs, groups), scales)
    best_W, joins_W = odds_WG.argmax(axis=1), odds_WG.max(axis=1) >= 0
    joins_GW = (joins_W & (best_W == np.arange(len(members))[:, None])).astype(np.float64)
    count_GO = groups.count_GO + joins_GW @ theirs.count_GO
    flat_WX = theirs.sum_GOD.reshape(len(waiting), -1)
    sum_GOD = groups.sum_GOD + (joins_GW @ flat_WX).reshape(groups.sum_GOD.shape)
    for group, joins_W in enumerate(joins_GW):
        members[group] = members[group] + waiting[joins_W > 0].tolist()
    square_GO = np.einsum("god,god->go", sum_GOD, sum_GOD)
    return _Groups(count_GO, sum_GOD, square_GO), waiting[odds_WG.max(axis=1) < 0]
