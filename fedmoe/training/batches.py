"""Which samples each client sees at each step, for a whole cohort at once.

The order of a client's samples depends on (seed, round, client, epoch, position) alone, by a
counter-based hash: it is the same whoever else is in the cohort, and a resumed run needs no
saved generator.

Letters: C clients of the cohort, n most samples of a client, P epochs, S steps, B batch.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmoe.data.drawing import Keys
from fedmoe.data.drawing import hash_keys as hash_keys
from fedmoe.data.federation import Ints


class Schedule(NamedTuple):
    """The cohort's steps.

    Attributes:
        rows_SCB: int64 rows of the pool; padding repeats a row of the same client.
        samples_SC: how many of each batch, from the front, are real; 0 once a client is done.
        epoch_SC: the epoch that a step belongs to.
        active_S: how many clients, from the front, still train at a step.
    """

    rows_SCB: Ints
    samples_SC: Ints
    epoch_SC: Ints
    active_S: Ints

    def weight_SCB(self) -> NDArray[np.float64]:
        """Each sample's share of its batch, 0 for padding; sums to 1 while active."""
        size_SC1 = self.samples_SC[..., None]
        return (np.arange(self.rows_SCB.shape[2]) < size_SC1) / np.maximum(size_SC1, 1)


def steps_per_epoch(count_C: Ints, batch_size: int) -> Ints:
    """Batches that each client's samples make; the last one holds what is left."""
    return -(-count_C // batch_size)


def make_schedule(
    *,
    rows_Cn: Ints,
    count_C: Ints,
    client_C: Ints,
    epochs_C: Ints,
    batch_size: int,
    seed: int,
    round: int,
) -> Schedule:
    """Shuffle and batch each client's rows, afresh for each epoch.

    Args:
        rows_Cn: each client's rows of the pool, padded on the right.
        count_C: how many of them are real.
        client_C: the clients' ids.
        epochs_C: passes over the data, 0 or more.
        batch_size: most samples per step.
        seed: of the experiment.
        round: of the federation.

    Raises:
        ValueError: the clients are not ordered by falling number of steps.
    """
    steps_C = steps_per_epoch(count_C, batch_size)
    total_C = steps_C * epochs_C
    if (np.diff(total_C) > 0).any():
        raise ValueError("clients must be ordered by falling number of steps")
    clients, longest = rows_Cn.shape
    width, epochs = min(batch_size, longest), int(epochs_C.max(initial=0))
    # At its step t, client c is in epoch t // steps_c, at batch t % steps_c.
    step_S1 = np.arange(int(total_C.max(initial=0)))[:, None]
    active_SC = step_S1 < total_C
    epoch_SC, batch_SC = np.divmod(step_S1, np.maximum(steps_C, 1)) * active_SC
    samples_SC = np.minimum(count_C - batch_SC * width, width) * active_SC
    if not active_SC.size:
        rows_SCB = np.zeros((*active_SC.shape, width), dtype=np.int64)
        return Schedule(rows_SCB, samples_SC, epoch_SC, active_SC.sum(axis=1))
    keys = hash_keys(seed, round, client_C[:, None, None], np.arange(epochs)[:, None],
                     np.arange(longest))  # fmt: skip
    shuffled_CPn = _shuffled(rows_Cn, count_C, keys)
    first_SC = (np.arange(clients) * epochs + epoch_SC) * longest + batch_SC * width
    last_SC1 = np.maximum(samples_SC - 1, 0)[..., None]
    place_SCB = first_SC[..., None] + np.minimum(np.arange(width), last_SC1)
    return Schedule(shuffled_CPn.take(place_SCB), samples_SC, epoch_SC, active_SC.sum(axis=1))


def step_keys(seed: int, round: int, client_C: Ints, steps: int) -> Ints:
    """(S, C) keys for what is drawn at a step: a client's own, whoever else is in the cohort."""
    return hash_keys(seed, round, client_C, np.arange(steps)[:, None]).view(np.int64)


def _shuffled(rows_Cn: Ints, count_C: Ints, keys_CPn: Keys) -> Ints:
    """(C, P, n) rows in the order of their keys, the real ones of each client first.

    The keys' lowest bits give way to the position, so that sorting the keys, which is several
    times quicker than `argsort`, sorts the positions.
    """
    position_n = np.arange(rows_Cn.shape[1], dtype=np.uint64)
    mask = np.uint64((1 << len(position_n).bit_length()) - 1)
    padding_C1n = position_n >= count_C[:, None, None]
    keys_CPn = keys_CPn & ~mask | position_n | np.where(padding_C1n, ~mask, np.uint64(0))
    keys_CPn.sort(axis=-1)
    place_CPn = (keys_CPn & mask).astype(np.int64)
    return np.take_along_axis(rows_Cn[:, None], place_CPn, axis=-1)
