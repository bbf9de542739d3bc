"""Seeded randomness: one independent stream per stage, and a Dirichlet that never fails."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

# Beyond these the Dirichlet is a point mass or uniform to every digit of a float64, and the
# arithmetic below would overflow.
_SMALLEST_ALPHA, _LARGEST_ALPHA = 1e-300, 1e300


class Stream(IntEnum):
    """Stages that draw; a stage that draws more does not change what the others see."""

    SOURCE = 0
    PARTITION = 1
    SPLIT = 2
    GROUPS = 3


def generator(seed: int, stream: Stream) -> np.random.Generator:
    """The random numbers of one stage of one experiment."""
    return np.random.default_rng([seed, int(stream)])


def dirichlet(
    rng: np.random.Generator, alpha: float, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Symmetric Dirichlet proportions, for any positive concentration.

    The usual recipe, normalised Gamma(alpha) draws, gives 0 / 0 for a small alpha because every
    draw underflows. Here the draws stay logarithms: Gamma(alpha) is distributed as
    Gamma(alpha + 1) * U^(1 / alpha), and the largest logarithm is subtracted before `exp`.

    Args:
        rng: where the draws come from.
        alpha: concentration, above 0.
        shape: of the result; the last axis is the one that sums to 1.

    Returns:
        float64 proportions of that shape, finite and not negative.
    """
    alpha = min(max(alpha, _SMALLEST_ALPHA), _LARGEST_ALPHA)
    uniform = 1.0 - rng.random(shape)  # in (0, 1]: its logarithm is finite
    logs = np.log(rng.standard_gamma(alpha + 1.0, shape)) + np.log(uniform) / alpha
    weights = np.exp(logs - logs.max(axis=-1, keepdims=True))
    proportions: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return proportions
