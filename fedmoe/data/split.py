"""Each client's samples into a training, a validation and a test part."""

import numpy as np

from fedmoe.data.federation import Ints, Part, Rows


def split(
    rows: list[Ints],
    validation_fraction: float,
    test_fraction: float,
    rng: np.random.Generator,
) -> dict[Part, Rows]:
    """Divide every client's samples at random; see `part_sizes` for how many go where.

    Args:
        rows: the samples of each client.
        validation_fraction: share for validation, in [0, 1).
        test_fraction: share for testing, in [0, 1); the two stay below 1 together.
        rng: shuffles the samples within each client.

    Returns:
        Three parts, disjoint, that cover all samples given.
    """
    packed = Rows.pack(rows)
    owner_N = np.repeat(np.arange(len(rows)), packed.counts_K)
    # One sort shuffles within all clients at once: by client, then by a random key.
    order = packed.order[np.lexsort((rng.random(len(owner_N)), owner_N))]
    return cut(Rows(order, packed.offsets), validation_fraction, test_fraction)


def cut(rows: Rows, validation_fraction: float, test_fraction: float) -> dict[Part, Rows]:
    """Divide every client's samples in the order they have: the last ones are for testing.

    Args:
        rows: the samples of each client, shuffled.
        validation_fraction: share for validation, in [0, 1).
        test_fraction: share for testing, in [0, 1); the two stay below 1 together.

    Returns:
        Three parts, disjoint, that cover all samples given.
    """
    counts_K = rows.counts_K
    validation_K, test_K = part_sizes(counts_K, validation_fraction, test_fraction)
    place_N = np.arange(len(rows.order)) - np.repeat(rows.offsets[:-1], counts_K)
    edges: dict[Part, tuple[Ints, Ints]] = {
        "train": (np.zeros_like(counts_K), counts_K - validation_K - test_K),
        "validation": (counts_K - validation_K - test_K, counts_K - test_K),
        "test": (counts_K - test_K, counts_K),
    }
    parts: dict[Part, Rows] = {}
    for part, (first_K, end_K) in edges.items():
        chosen_N = place_N >= np.repeat(first_K, counts_K)
        chosen_N &= place_N < np.repeat(end_K, counts_K)
        offsets = np.concatenate([[0], np.cumsum(end_K - first_K)])
        parts[part] = Rows(rows.order[chosen_N], offsets)
    return parts


def part_sizes(
    counts_K: Ints, validation_fraction: float, test_fraction: float
) -> tuple[Ints, Ints]:
    """How many of each client's samples are for validation and for testing.

    `round(fraction * n)`, but at least one where the fraction is positive and n is 3 or more,
    and never so many that nothing is left to train on. Of 2 samples one is for testing (for
    validation where no test part is wanted); a single one is for training.

    Args:
        counts_K: samples of each client.
        validation_fraction: share for validation, in [0, 1).
        test_fraction: share for testing, in [0, 1).

    Returns:
        Two int64 arrays (K,): validation and test sizes.
    """
    at_least = (counts_K >= 3).astype(np.int64)
    validation_K = _rounded(counts_K, validation_fraction, at_least)
    test_K = _rounded(counts_K, test_fraction, at_least)
    # Rounding may claim the last samples for training; the larger part gives them back.
    excess_K = np.maximum(validation_K + test_K - (counts_K - 1), 0)
    from_test_K = np.where(test_K >= validation_K, excess_K, 0)
    validation_K, test_K = validation_K - (excess_K - from_test_K), test_K - from_test_K
    few_K = counts_K < 3
    pair_K = (counts_K == 2).astype(np.int64)
    test_K = np.where(few_K, pair_K * (test_fraction > 0), test_K)
    validation_K = np.where(
        few_K, pair_K * (test_fraction == 0 and validation_fraction > 0), validation_K
    )
    return validation_K, test_K


def _rounded(counts_K: Ints, fraction: float, at_least: Ints) -> Ints:
    if fraction == 0:
        return np.zeros_like(counts_K)
    sizes_K: Ints = np.maximum(np.rint(fraction * counts_K).astype(np.int64), at_least)
    return sizes_K
