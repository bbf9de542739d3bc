"""Concept groups: client k belongs to group k % G, and each group sees the world its own way.

Letters: N samples, D features, K clients, G groups, C classes.
"""

import math
from dataclasses import replace

import numpy as np

from fedmoe.data.federation import Dataset, Floats, Ints
from fedmoe.errors import DataError
from fedmoe.schema import LabelPermutationConfig, PartitionConfig, RotationConfig


def transform(
    dataset: Dataset, rows: list[Ints], config: PartitionConfig, rng: np.random.Generator
) -> tuple[Dataset, Ints | None]:
    """Rotate images or permute labels, group by group, where the partition asks for it.

    Args:
        dataset: what the source yielded; not changed.
        rows: the samples of each of K clients.
        config: any partition; only `rotation` and `label_permutation` have groups.
        rng: draws the permutations.

    Returns:
        The data set as its clients see it, and each client's group (K,), or `None` without groups.

    Raises:
        DataError: for rotations or permutations that cannot be had.
    """
    if not isinstance(config, RotationConfig | LabelPermutationConfig):
        return dataset, None
    group_K = np.arange(len(rows), dtype=np.int64) % config.num_groups
    members = [
        np.concatenate([rows[client] for client in np.flatnonzero(group_K == group)])
        for group in range(config.num_groups)
    ]
    if isinstance(config, RotationConfig):
        return _rotated(dataset, members), group_K
    return _relabelled(dataset, members, rng), group_K


def rotate_images(images_NHW: Floats, step: int, steps: int) -> Floats:
    """Turn images counter-clockwise by `360 * step / steps` degrees about their centre.

    Quarter turns are exact; other angles are interpolated linearly, with zeros moving in at the
    corners.

    Args:
        images_NHW: float32 images (N, height, width).
        step: which of the equal turns, 0 to `steps` - 1.
        steps: into how many the full circle is divided.

    Returns:
        float32 images of the same shape.

    Raises:
        DataError: for a quarter turn of images that are not square.
    """
    quarters, rest = divmod(4 * step, steps)
    if rest == 0:
        height, width = images_NHW.shape[1:]
        if quarters % 2 and height != width:
            raise DataError(
                f"rotation: images of {height} x {width} pixels cannot be turned by "
                f"{90 * quarters} degrees; choose num_groups so that none is (2, or an odd number)"
            )
        return np.rot90(images_NHW, quarters, axes=(1, 2))
    from scipy.ndimage import rotate  # late: start-up time

    turned: Floats = rotate(images_NHW, 360.0 * step / steps, axes=(1, 2), reshape=False, order=1)
    return turned


def label_permutations(num_groups: int, num_classes: int, rng: np.random.Generator) -> Ints:
    """Distinct permutations of the classes, the identity first.

    The first C are the cyclic shifts along a random order of the classes: any two of them
    disagree about every class. Further ones are random.

    Args:
        num_groups: G.
        num_classes: C.
        rng: draws the order, and the further permutations.

    Returns:
        int64 (G, C): what group g calls class c.

    Raises:
        DataError: if C classes have fewer than G permutations.
    """
    if num_groups > math.factorial(num_classes):
        raise DataError(
            f"label_permutation: {num_groups} groups, but {num_classes} classes have only "
            f"{math.factorial(num_classes)} permutations"
        )
    order = rng.permutation(num_classes)
    permutations = np.empty((num_groups, num_classes), dtype=np.int64)
    for group in range(min(num_groups, num_classes)):
        permutations[group, order] = np.roll(order, -group)
    seen = {tuple(row) for row in permutations[:num_classes].tolist()}
    while len(seen) < num_groups:
        drawn = rng.permutation(num_classes)
        permutations[len(seen)] = drawn  # one that was seen before is overwritten by the next
        seen.add(tuple(drawn.tolist()))
    return permutations


def _rotated(dataset: Dataset, members: list[Ints]) -> Dataset:
    if dataset.image_shape is None:
        raise DataError(f"rotation: the samples of {dataset.name} are not images")
    x_ND = dataset.x_ND.copy()
    for group, rows in enumerate(members):
        images = dataset.x_ND[rows].reshape(-1, *dataset.image_shape)
        x_ND[rows] = rotate_images(images, group, len(members)).reshape(len(rows), -1)
    return replace(dataset, x_ND=x_ND)


def _relabelled(dataset: Dataset, members: list[Ints], rng: np.random.Generator) -> Dataset:
    permutations_GC = label_permutations(len(members), dataset.task.num_outputs, rng)
    y_N = dataset.y_N.copy()
    for permutation_C, rows in zip(permutations_GC, members, strict=True):
        y_N[rows] = permutation_C[dataset.y_N[rows].astype(np.int64)]
    return replace(dataset, y_N=y_N)
