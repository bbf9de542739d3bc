"""Seeded randomness: a stream per stage, a hash of integers, a Dirichlet that never fails."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Beyond these the Dirichlet is a point mass or uniform to every digit of a float64, and the
# arithmetic below would overflow.
_SMALLEST_ALPHA, _LARGEST_ALPHA = 1e-300, 1e300


class Stream(IntEnum):
    """Stages that draw; a stage that draws more does not change what the others see."""

    SOURCE = 0
    PARTITION = 1
    SPLIT = 2
    GROUPS = 3
    PUBLIC = 4
    SKETCHING = 5


def generator(seed: int, stream: Stream) -> np.random.Generator:
    """The random numbers of one stage of one experiment."""
    return np.random.default_rng([seed, int(stream)])


def hash_keys(*words: int | NDArray[np.int64]) -> Keys:
    """Mix integers (broadcast against each other) into uniform 64-bit keys.

    Each word is folded in by a round of SplitMix64's finaliser (Steele, Lea and Flood, "Fast
    splittable pseudorandom number generators", OOPSLA 2014).
    """
    state: Keys = np.asarray(_GOLDEN)
    with np.errstate(over="ignore"):  # wrapping round is what the hash is made of
        for word in words:
            z = (np.asarray(word).astype(np.uint64) ^ state) + _GOLDEN
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = z ^ (z >> np.uint64(31))
    return state


def dirichlet(
    rng: np.random.Generator, alpha: float, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Symmetric Dirichlet proportions, for any positive concentration.

    Args:
        rng: where the draws come from.
        alpha: concentration, above 0.
        shape: of the result; the last axis is the one that sums to 1.

    Returns:
        float64 proportions of that shape, finite and not negative.
    """
    uniform = rng.random(shape)
    return proportions(rng.standard_gamma(raised(alpha), shape), uniform, alpha)


def raised(alpha: float) -> float:
    """The shape of the Gamma draws from which `proportions` makes Dirichlet(alpha)."""
    return _bounded(alpha) + 1.0


def proportions(
    gamma: NDArray[np.float64], uniform: NDArray[np.float64], alpha: float
) -> NDArray[np.float64]:
    """Turn draws into Dirichlet(alpha) proportions.

    The usual recipe, normalised Gamma(alpha) draws, gives 0 / 0 for a small alpha because every
    draw underflows. Here the draws stay logarithms: Gamma(alpha) is distributed as
    Gamma(alpha + 1) * U^(1 / alpha), and the largest logarithm is subtracted before `exp`.

    Args:
        gamma: Gamma(`raised(alpha)`) draws.
        uniform: as many draws in [0, 1).
        alpha: concentration, above 0.

    Returns:
        float64 proportions of the same shape; the last axis sums to 1.
    """
    # 1 - U is in (0, 1]: its logarithm is finite.
    logs = np.log(gamma) + np.log(1.0 - uniform) / _bounded(alpha)
    weights = np.exp(logs - logs.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return shares


def _bounded(alpha: float) -> float:
    return min(max(alpha, _SMALLEST_ALPHA), _LARGEST_ALPHA)
