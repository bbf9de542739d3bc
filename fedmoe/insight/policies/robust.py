"""What keeps a client that lies from deciding for all: rules by medians over clients.

The median of an honest majority is that of honest clients, whatever the others say. Of numbers, one
that is far above the median is cut (`winsorised`). Class statistics (samples, their sums, how far
they lie from their mean) are held against what most clients tell (`vet_classes`):

- samples in all count for five times the median at most;
- where the trace by degree of freedom is more than five times the median's, or less than a fifth of
  it, the client is not believed; with less than ten degrees of freedom chance alone makes as much
  of it, and the trace is only cut;
- the same for how far a client's own classes are apart, from four classes on;
- clients that tell the same to the last digit count for one client together, and are all named,
  since nobody knows who copied whom.

Whose classes mean something else than everybody's passes here. Such clients become clusters of
their own, from which others learn nothing; small ones are named (`unlike`).

Letters: C clients of a round, K clients, O classes, D features.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

MOST = 10.0  # times the median: honest clients differ by less, or lose little
ABSURD = 100.0  # times the median
FACTOR = 5.0  # times the median, or its inverse, within which class statistics are believed
FEWEST = 5  # clients that have a median
_FEWEST_FREEDOM = 10
_FEWEST_CLASSES = 4
_RARE = 1e-3  # share of honest federations in which anybody is beyond chance
_LIKELY = 3.0  # times the usual sum of squares, that is believed in any case
_SMALL = 0.1  # of all clients, in a cluster that is unlike the others
_MOST_UNLIKE = 0.25  # of all clients: where more are in small clusters, there are many rules


def winsorised(values_C: Doubles, times: float | None = None) -> tuple[Doubles, NDArray[np.bool_]]:
    """Cut values at some times their median.

    Args:
        values_C: none below 0.
        times: by default `MOST`.

    Returns:
        The values, and which of them were cut.
    """
    most = (MOST if times is None else times) * float(np.median(values_C))
    return np.minimum(values_C, most), values_C > most


def plausible(values_C: Doubles) -> Doubles:
    """Values at or above 0, cut; those that are absurd, above `ABSURD` times the median, are it."""
    if not len(values_C):
        return values_C
    median = float(np.median(values_C))
    return np.where(values_C > ABSURD * median, median, winsorised(values_C)[0])


@dataclass(frozen=True)
class Vetted:
    """How far clients' class statistics are believed.

    Attributes:
        weight_K: what counts and sums are to be multiplied by, 0 to 1; 0 for suspects, but for
            those whose words are others' words.
        trace_KO: the traces times the weights, and cut.
        capped: places of clients with more samples than count.
        suspects: why a client is not believed, by place.
    """

    weight_K: Doubles
    trace_KO: Doubles
    capped: list[int]
    suspects: dict[int, str]


def vet_classes(count_KO: Doubles, sum_KOD: Doubles, trace_KO: Doubles | None = None) -> Vetted:
    """Hold clients' class statistics against those of most.

    Args:
        count_KO: samples; 0 for a class that is not told.
        sum_KOD: their sum.
        trace_KO: the sum of their squared distances from their mean, if it was told.
    """
    count_KO = np.asarray(count_KO, dtype=np.float64)
    told_KO, freedom_K = count_KO > 0, np.maximum(count_KO - 1, 0).sum(axis=1)
    trace_KO = np.where(told_KO, 0.0 if trace_KO is None else trace_KO, 0.0).astype(np.float64)
    wide_K = trace_KO.sum(axis=1) / np.maximum(freedom_K, 1)
    apart_K, classes_K = class_spread(count_KO, sum_KOD), told_KO.sum(axis=1)
    suspects: dict[int, str] = {}
    if trace_KO.any():
        suspects |= _far_from_median(wide_K, freedom_K >= _FEWEST_FREEDOM, "spread within classes")
    suspects |= _far_from_median(apart_K, classes_K >= _FEWEST_CLASSES, "spread of classes")
    weight_K = shares_kept(count_KO.sum(axis=1))
    capped = [k for k in np.flatnonzero(weight_K < 1).tolist() if k not in suspects]
    weight_K[list(suspects)] = 0.0
    copies_K, same = _copies(count_KO, sum_KOD)
    weight_K /= copies_K
    kept_K = np.where(freedom_K >= _FEWEST_FREEDOM, 1.0, shares_kept(wide_K))
    return Vetted(weight_K, trace_KO * (weight_K * kept_K)[:, None], capped, same | suspects)


def shares_kept(values_K: Doubles) -> Doubles:
    """What values are to be multiplied by, (K,), so that none is above `FACTOR` times the median.

    The median is that of the values above 0.
    """
    some = values_K[values_K > 0]
    if len(some) < FEWEST:
        return np.ones(len(values_K))
    most = FACTOR * float(np.median(some))
    return np.asarray(most / np.maximum(values_K, most))


def class_spread(count_KO: Doubles, sum_KOD: Doubles) -> Doubles:
    """(K,): the mean squared distance of a client's class means from their mean; 0 of none."""
    told_KO1 = (count_KO > 0)[..., None]
    classes_K1 = np.maximum(told_KO1.sum(axis=1), 1)
    mean_KOD = np.where(told_KO1, sum_KOD, 0.0) / np.maximum(count_KO, 1)[..., None]
    middle_KD = mean_KOD.sum(axis=1) / classes_K1
    away_KOD = np.where(told_KO1, mean_KOD - middle_KD[:, None], 0.0)
    return np.asarray((away_KOD**2).sum(axis=(1, 2)) / classes_K1[:, 0])


def _copies(count_KO: Doubles, sum_KOD: Doubles) -> tuple[Doubles, dict[int, str]]:
    """How many clients tell what each does, (K,), and reasons by place where it is several."""
    told = np.flatnonzero((count_KO > 0).any(axis=1))
    rows = np.concatenate([count_KO[told], sum_KOD[told].reshape(len(told), -1)], axis=1)
    words = [row.tobytes() for row in rows + 0.0]  # 0.0 for -0.0, which is another byte
    copies = Counter(words)
    copies_K = np.ones(len(count_KO))
    copies_K[told] = [copies[word] for word in words]
    several = np.flatnonzero(copies_K > 1).tolist()
    return copies_K, {
        k: f"{copies_K[k]:.0f} clients tell the same to the last digit" for k in several
    }


def _far_from_median(value_K: Doubles, tested_K: NDArray[np.bool_], what: str) -> dict[int, str]:
    """Reasons by place, of the tested clients whose value is far from the tested ones' median."""
    median = float(np.median(value_K[tested_K])) if tested_K.sum() >= FEWEST else 0.0
    if not median:
        return {}
    ratio_K = value_K / median
    far_K = tested_K & ((ratio_K > FACTOR) | (ratio_K < 1 / FACTOR))
    return {k: f"{what} {ratio_K[k]:.3g} times the median" for k in np.flatnonzero(far_K).tolist()}


def beyond_chance(square_K: Doubles, freedom_K: Doubles, what: str) -> dict[int, str]:
    """Reasons by place, of clients whose sum of squares is too large to be chance.

    Sums of squares of `freedom_K` normal variables each, all of one unknown variance, which is
    taken from the median. One honest federation in a thousand has anybody above the limit, which
    is at least `_LIKELY` times what is usual.
    """
    from scipy.special import gammainccinv, gammaincinv  # slow to import

    tested_K = freedom_K > 0
    if tested_K.sum() < FEWEST:
        return {}
    half_K = np.where(tested_K, freedom_K, 1) / 2
    middle_K = 2 * gammaincinv(half_K, 0.5)  # of the chi-squared distribution
    ratio_K = square_K / middle_K
    usual = max(float(np.median(ratio_K[tested_K])), np.finfo(np.float64).tiny)
    rare_K = 2 * gammainccinv(half_K, _RARE / tested_K.sum()) / middle_K
    far_K = tested_K & (ratio_K > usual * np.maximum(rare_K, _LIKELY))
    return {
        k: f"{what} {np.sqrt(ratio_K[k] / usual):.3g} times the median"
        for k in np.flatnonzero(far_K).tolist()
    }


def unlike(label_K: NDArray[np.int64]) -> dict[int, str]:
    """Reasons by place, of clients in clusters that are small beside the others.

    Args:
        label_K: clusters from 0; -1 for who is in none.
    """
    placed_K = label_K >= 0
    size_K = np.bincount(label_K[placed_K], minlength=1)[label_K]
    small_K = placed_K & (size_K <= _SMALL * placed_K.sum())
    if small_K.sum() > _MOST_UNLIKE * placed_K.sum():
        return {}
    return {
        k: f"unlike the others: a cluster of {size_K[k]} of {placed_K.sum()}"
        for k in np.flatnonzero(small_K).tolist()
    }
