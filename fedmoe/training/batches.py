"""Which samples each client sees at each step, for a whole cohort at once.

The order of a client's samples depends on (seed, round, client, epoch, position) alone, by a
counter-based hash: it is the same whoever else is in the cohort, and a resumed run needs no
saved generator.

Letters: C clients of the cohort, n most samples of a client, P epochs, S steps, B batch.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmoe.data.federation import Ints

Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_keys(*words: int | Ints) -> Keys:
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


class Schedule(NamedTuple):
    """The cohort's steps.

    Attributes:
        rows_SCB: int64 rows of the pool; padding repeats some row.
        weight_SCB: each sample's share of its batch, 0 for padding; sums to 1 while active.
        epoch_SC: the epoch that a step belongs to.
        active_S: how many clients, from the front, still train at a step.
    """

    rows_SCB: Tensor
    weight_SCB: Tensor
    epoch_SC: Ints
    active_S: Ints


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
    clients, most = rows_Cn.shape
    longest = int(total_C.max(initial=0))
    width = min(batch_size, most)
    if not longest:
        empty = torch.zeros((0, clients, width))
        no_steps = np.zeros((0, clients), dtype=np.int64)
        return Schedule(empty.long(), empty, no_steps, no_steps[:, 0] if clients else no_steps)
    epochs = int(epochs_C.max())
    place = np.arange(most)
    keys = hash_keys(seed, round, client_C[:, None, None], np.arange(epochs)[:, None], place)
    keys[np.broadcast_to(place >= count_C[:, None, None], keys.shape)] = np.iinfo(np.uint64).max
    shuffled = np.take_along_axis(rows_Cn[:, None], keys.argsort(axis=-1, kind="stable"), axis=-1)
    steps = int(steps_C.max())
    filled = np.zeros((clients, epochs, steps * width), dtype=np.int64)
    filled[..., :most] = shuffled[..., : steps * width]
    # At its step t, client c is in epoch t // steps_c, at batch t % steps_c.
    step_SC = np.broadcast_to(np.arange(longest)[:, None], (longest, clients))
    epoch_SC, batch_SC = np.divmod(step_SC, np.maximum(steps_C, 1))
    epoch_SC = np.minimum(epoch_SC, epochs - 1)
    rows = filled.reshape(clients, epochs, steps, width)[np.arange(clients), epoch_SC, batch_SC]
    left_SC = np.clip(count_C - batch_SC * width, 0, width)
    left_SC = np.where(step_SC < total_C, left_SC, 0)
    weight = (np.arange(width) < left_SC[..., None]) / np.maximum(left_SC, 1)[..., None]
    active_S = (step_SC < total_C).sum(axis=1)
    return Schedule(
        torch.from_numpy(rows), torch.from_numpy(weight.astype(np.float32)), epoch_SC, active_S
    )
