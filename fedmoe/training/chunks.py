"""How many clients to stack at once.

Letters: C clients.
"""

from collections.abc import Mapping

from torch import Tensor

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


def even_chunks(clients: int, most: int) -> list[slice]:
    """As few chunks as hold no more than `most` clients each, of one size but for the last."""
    size = -(-clients // max(-(-clients // most), 1))
    return [slice(start, min(start + size, clients)) for start in range(0, clients, max(size, 1))]
