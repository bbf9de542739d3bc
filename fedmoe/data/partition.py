"""Who gets which samples: one function per partitioner, found in `PARTITIONERS` by name.

A partitioner gives every sample to exactly one client, and no client fewer than `min_samples`;
what cannot be done is refused with the numbers. None of them touches the samples themselves:
see `groups` for rotated images and permuted labels.

Letters: N samples, K clients, C classes.
"""

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np

from fedmoe.data.drawing import dirichlet
from fedmoe.data.federation import Dataset, Ints
from fedmoe.data.owners import rows_by_owner
from fedmoe.errors import DataError
from fedmoe.schema import (
    DirichletConfig,
    IidConfig,
    LabelPermutationConfig,
    NaturalConfig,
    QuantityConfig,
    RotationConfig,
    ShardsConfig,
)

Partitioner = Callable[[Dataset, Any, np.random.Generator], list[Ints]]


def iid(
    dataset: Dataset,
    config: IidConfig | RotationConfig | LabelPermutationConfig,
    rng: np.random.Generator,
) -> list[Ints]:
    """Equal random shares; sizes differ by one at most.

    Raises:
        DataError: if there are too few samples.
    """
    _refuse_too_few(dataset, config.name, config.num_clients, config.min_samples)
    return np.array_split(rng.permutation(len(dataset.x_ND)), config.num_clients)


def dirichlet_labels(
    dataset: Dataset, config: DirichletConfig, rng: np.random.Generator
) -> list[Ints]:
    """Label skew: the samples of each class are shared out by Dirichlet(alpha) proportions.

    After arXiv 1909.06335 in the per-class form of arXiv 2102.02079. Deviation: that code draws
    again until every client has enough samples, which may never happen; here poor clients are
    topped up, see `top_up`.

    Raises:
        DataError: for a regression task, or if there are too few samples.
    """
    _refuse_regression(dataset, config.name)
    _refuse_too_few(dataset, config.name, config.num_clients, config.min_samples)
    owner_N = np.empty(len(dataset.y_N), dtype=np.int64)
    for label in range(dataset.task.num_outputs):
        rows = rng.permutation(np.flatnonzero(dataset.y_N == label))
        sizes_K = _sizes(rng, config.alpha, config.num_clients, len(rows))
        owner_N[rows] = np.repeat(np.arange(config.num_clients), sizes_K)
    return top_up(rows_by_owner(owner_N, config.num_clients), config.min_samples, rng)


def shards(dataset: Dataset, config: ShardsConfig, rng: np.random.Generator) -> list[Ints]:
    """Samples sorted by label, cut into equal shards, `shards_per_client` dealt to each client.

    After section 3 of arXiv 1602.05629. Deviation: sizes need not divide evenly, so shards differ
    by one sample at most, and a client that falls short is topped up, see `top_up`.

    Raises:
        DataError: for a regression task, or if there are fewer samples than shards or needed.
    """
    _refuse_regression(dataset, config.name)
    _refuse_too_few(dataset, config.name, config.num_clients, config.min_samples)
    num_samples = len(dataset.y_N)
    num_shards = config.num_clients * config.shards_per_client
    if num_shards > num_samples:
        raise DataError(
            f"shards: {config.num_clients} clients x {config.shards_per_client} shards = "
            f"{num_shards} shards, {dataset.name} has only {num_samples} samples"
        )
    shuffled = rng.permutation(num_samples)
    by_label = shuffled[np.argsort(dataset.y_N[shuffled], kind="stable")]
    shard_sizes = [len(part) for part in np.array_split(by_label, num_shards)]
    dealt = rng.permutation(np.repeat(np.arange(config.num_clients), config.shards_per_client))
    owner_N = np.empty(num_samples, dtype=np.int64)
    owner_N[by_label] = np.repeat(dealt, shard_sizes)
    return top_up(rows_by_owner(owner_N, config.num_clients), config.min_samples, rng)


def quantity(dataset: Dataset, config: QuantityConfig, rng: np.random.Generator) -> list[Ints]:
    """Quantity skew: client sizes by Dirichlet(alpha) proportions, labels IID (arXiv 2102.02079).

    Raises:
        DataError: if there are too few samples.
    """
    _refuse_too_few(dataset, config.name, config.num_clients, config.min_samples)
    num_samples = len(dataset.x_ND)
    sizes_K = _sizes(rng, config.alpha, config.num_clients, num_samples)
    rows = np.split(rng.permutation(num_samples), np.cumsum(sizes_K)[:-1])
    return top_up(rows, config.min_samples, rng)


def rotation(dataset: Dataset, config: RotationConfig, rng: np.random.Generator) -> list[Ints]:
    """Equal random shares for clients whose images `groups.transform` then rotates.

    Raises:
        DataError: if the samples are no images, or there are too few samples or clients.
    """
    if dataset.image_shape is None:
        raise DataError(f"rotation: the samples of {dataset.name} are not images")
    _refuse_too_many_groups(config)
    return iid(dataset, config, rng)


def label_permutation(
    dataset: Dataset, config: LabelPermutationConfig, rng: np.random.Generator
) -> list[Ints]:
    """Equal random shares for clients whose labels `groups.transform` then permutes.

    Raises:
        DataError: for a regression task, or if there are too few samples or clients.
    """
    _refuse_regression(dataset, config.name)
    _refuse_too_many_groups(config)
    return iid(dataset, config, rng)


def natural(dataset: Dataset, config: NaturalConfig, _rng: np.random.Generator) -> list[Ints]:
    """One client per natural client of the source; nothing is drawn.

    Raises:
        DataError: if the source knows no clients, or one of them has too few samples.
    """
    if dataset.client_N is None:
        raise DataError(
            f"natural: {dataset.name} does not say which client a sample belongs to; "
            "choose another partition (for data=table: set data.client_column)"
        )
    rows = rows_by_owner(dataset.client_N, len(dataset.client_names))
    sizes = [len(own) for own in rows]
    poor = [client for client, size in enumerate(sizes) if size < config.min_samples]
    if poor:
        others = f" ({len(poor) - 1} more are below it)" if len(poor) > 1 else ""
        raise DataError(
            f"natural: client {dataset.client_names[poor[0]]!r} of {dataset.name} has "
            f"{sizes[poor[0]]} samples, min_samples is {config.min_samples}{others}"
        )
    return rows


def top_up(rows: list[Ints], min_samples: int, rng: np.random.Generator) -> list[Ints]:
    """Bring every client up to `min_samples` with random samples of the richest clients.

    One sample at a time leaves whoever is the richest at that moment, so the large clients are
    levelled and nobody else changes. It always ends: while somebody is below the minimum, the
    richest is above it, provided that there are `K * min_samples` samples.

    Args:
        rows: the samples of each client.
        min_samples: fewest samples a client may be left with.
        rng: chooses which samples move, and to whom.

    Returns:
        The samples of each client; those of clients neither poor nor richest are as before.
    """
    wanted = [max(0, min_samples - len(own)) for own in rows]
    if not any(wanted):
        return rows
    given = _gifts([len(own) for own in rows], sum(wanted))
    kept: list[Ints] = []
    moving: list[Ints] = []
    for own, gift in zip(rows, given, strict=True):
        shuffled = rng.permutation(own) if gift else own
        kept.append(shuffled[gift:])
        moving.append(shuffled[:gift])
    pool = rng.permutation(np.concatenate(moving))
    arriving = np.split(pool, np.cumsum(wanted)[:-1])
    return [np.concatenate(pair) for pair in zip(kept, arriving, strict=True)]


def _gifts(sizes: list[int], total: int) -> list[int]:
    """How many samples each client gives if the richest gives one, `total` times over."""
    given = [0] * len(sizes)
    heap = [(-size, client) for client, size in enumerate(sizes)]
    heapq.heapify(heap)
    for _ in range(total):
        negative_size, client = heap[0]
        given[client] += 1
        heapq.heapreplace(heap, (negative_size + 1, client))
    return given


def _sizes(rng: np.random.Generator, alpha: float, num_clients: int, total: int) -> Ints:
    """Divide `total` samples over K clients in Dirichlet(alpha) proportions; sums to `total`."""
    # Rounded to the nearest, so that proportions which sum to 0.999... still end at `total`.
    edges = np.rint(np.cumsum(dirichlet(rng, alpha, (num_clients,))) * total).astype(np.int64)
    return np.diff(edges, prepend=0)


def _refuse_too_few(dataset: Dataset, name: str, num_clients: int, min_samples: int) -> None:
    needed = num_clients * min_samples
    if needed > len(dataset.x_ND):
        raise DataError(
            f"{name}: {num_clients} clients x min_samples {min_samples} = {needed} samples "
            f"needed, {dataset.name} has {len(dataset.x_ND)}"
        )


def _refuse_regression(dataset: Dataset, name: str) -> None:
    if dataset.task.kind != "classification":
        natural = (
            "" if dataset.client_N is None else "; it has clients of its own: partition=natural"
        )
        raise DataError(f"{name}: needs class labels, {dataset.name} is a regression task{natural}")


def _refuse_too_many_groups(config: RotationConfig | LabelPermutationConfig) -> None:
    if config.num_groups > config.num_clients:
        raise DataError(
            f"{config.name}: {config.num_groups} groups need at least as many clients, "
            f"there are {config.num_clients}"
        )


PARTITIONERS: dict[str, Partitioner] = {
    "iid": iid,
    "dirichlet": dirichlet_labels,
    "shards": shards,
    "quantity": quantity,
    "rotation": rotation,
    "label_permutation": label_permutation,
    "natural": natural,
}
