"""Makes Flower's own strategies sample the same clients in every run with the same seed."""

import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def seeded_random(*words: int) -> Iterator[None]:
    """Seed Python's global generator from `words` for the time of the block.

    `flwr.serverapp.strategy` samples nodes with `random.sample`. The state before is put back,
    so nobody else's numbers depend on ours.
    """
    before = random.getstate()
    random.seed(repr(words))
    try:
        yield
    finally:
        random.setstate(before)
