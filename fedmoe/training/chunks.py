"""How many clients to stack at once.

Letters: C clients.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

from fedmoe.data.federation import Ints
from fedmoe.training.pool import Pool

# What a chunk's parameters and inputs may take up on a CPU: docs/adr/0006-per-step-cost.md.
CACHE_BYTES = 8 * 2**20


def capacity(params: Mapping[str, Tensor], pool: Pool, samples: int, most: int) -> int:
    """Clients to stack at once, 1 or more.

    On a CPU as many as leave their parameters and inputs in the cache; on another device as many
    as allowed, since there it is the number of kernels that costs.

    Args:
        params: client axis first; nothing where all clients share one model.
        pool: where the samples lie.
        samples: of one client, seen at once.
        most: how many are allowed.
    """
    if pool.device.type != "cpu":
        return most
    each = samples * pool.x_ND[:1].nbytes
    each += sum(value.nbytes // max(len(value), 1) for value in params.values())
    return min(most, max(1, CACHE_BYTES // max(each, 1)))


def sample_chunks(
    params: Mapping[str, Tensor], pool: Pool, count_C: Ints, most: int
) -> Iterator[tuple[Ints, int]]:
    """Clients to look at together, with all of their samples at once, those with most first.

    Chunks of clients who have none are left out.

    Args:
        params: as in `capacity`.
        pool: where the samples lie.
        count_C: how many each client has.
        most: clients allowed in a chunk.

    Yields:
        (n,) the chunk's clients, and the most samples that one of them has.
    """
    order = np.argsort(-count_C, kind="stable")
    start = 0
    while start < len(order) and (longest := int(count_C[order[start]])):
        stop = start + capacity(params, pool, longest, most)
        yield order[start:stop], longest
        start = stop


def even_chunks(clients: int, most: int) -> list[slice]:
    """As few chunks as hold no more than `most` clients each, of one size but for the last."""
    size = -(-clients // max(-(-clients // most), 1))
    return [slice(start, min(start + size, clients)) for start in range(0, clients, max(size, 1))]
