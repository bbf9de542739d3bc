"""Which samples each client sees at each step, for a whole cohort at once.

The order of a client's samples depends on (seed, round, client, epoch, position) alone, by a
counter-based hash: it is the same whoever else is in the cohort, and a resumed run needs no
saved generator.

Letters: C clients of the cohort, n most samples of a client, P epochs, S steps, B batch.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedmoe.data.drawing import Keys
from fedmoe.data.drawing import hash_keys as hash_keys
from fedmoe.data.federation import Ints


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
    width = min(batch_size, rows_Cn.shape[1])
    epochs = int(epochs_C.max(initial=0))
    shuffled = _shuffled(rows_Cn, count_C, hash_keys(
        seed, round, client_C[:, None, None], np.arange(epochs)[:, None],
        np.arange(rows_Cn.shape[1]),
    ))  # fmt: skip
    # At its step t, client c is in epoch t // steps_c, at batch t % steps_c.
    step_S1 = np.arange(int(total_C.max(initial=0)))[:, None]
    active_SC = step_S1 < total_C
    epoch_SC, batch_SC = np.divmod(step_S1, np.maximum(steps_C, 1))
    epoch_SC = np.where(active_SC, epoch_SC, 0)
    batch_SC = np.where(active_SC, batch_SC, 0)
    place_SCB = batch_SC[..., None] * width + np.arange(width)
    real_SCB = (place_SCB < count_C[:, None]) & active_SC[..., None]
    place_SCB = np.where(real_SCB, place_SCB, 0)
    client_1C1 = np.arange(len(rows_Cn))[:, None]
    rows = shuffled[client_1C1, epoch_SC[..., None], place_SCB] if real_SCB.size else place_SCB
    weight = real_SCB / np.maximum(real_SCB.sum(axis=2, keepdims=True), 1)
    return Schedule(
        torch.from_numpy(rows),
        torch.from_numpy(weight.astype(np.float32)),
        epoch_SC,
        active_SC.sum(axis=1),
    )


def _shuffled(rows_Cn: Ints, count_C: Ints, keys_CPn: Keys) -> Ints:
    """(C, P, n) rows in the order of their keys, the real ones of each client first."""
    padding = np.arange(rows_Cn.shape[1]) >= count_C[:, None, None]
    keys_CPn[np.broadcast_to(padding, keys_CPn.shape)] = np.iinfo(np.uint64).max
    order_CPn = keys_CPn.argsort(axis=-1, kind="stable")
    return np.take_along_axis(rows_Cn[:, None], order_CPn, axis=-1)
