"""Whether arrays that somebody else's code made are what a task needs.

Letters: N samples, D features, O outputs.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedmoe.data.federation import Dataset, Floats, Ints, Task, numbered
from fedmoe.errors import DataError


def checked_samples(x: ArrayLike, y: ArrayLike, task: Task) -> tuple[Floats, Floats | Ints]:
    """Samples in the types that models take.

    Args:
        x: (N, D) numbers.
        y: (N,) whole numbers from 0 to O - 1 for classification; for regression (N, O) numbers,
            or (N,) if O is 1.
        task: says which.

    Returns:
        float32 (N, D) features; int64 (N,) classes or float32 (N, O) targets. Copies only where
        they are not so already.

    Raises:
        DataError: a wrong shape, type or class, or a number that is not finite.
    """
    x_ND = _floats("x", x)
    if x_ND.ndim != 2 or x_ND.shape[1] != task.num_features:
        raise DataError(f"x has shape {x_ND.shape}, expected (samples, {task.num_features})")
    y_N = _classes(y, task) if task.kind == "classification" else _targets(y, task)
    if len(x_ND) != len(y_N):
        raise DataError(f"x has {len(x_ND)} samples, y has {len(y_N)}")
    return x_ND, y_N


def checked_dataset(dataset: Dataset) -> Dataset:
    """A data set with its arrays in the types that models take, and names for whoever lacks one.

    Raises:
        DataError: something in it is of the wrong shape or type, or does not fit the rest.
    """
    x_ND, y_N = checked_samples(dataset.x_ND, dataset.y_N, dataset.task)
    if not len(x_ND):
        raise DataError("there are no samples")
    shape = dataset.image_shape
    if shape is not None and math.prod(shape) != x_ND.shape[1]:
        raise DataError(f"image_shape {shape} does not make {x_ND.shape[1]} features")
    client_N, names = dataset.client_N, dataset.client_names
    if client_N is not None:
        client_N = _whole("client_N", client_N)
        if client_N.shape != (len(x_ND),) or client_N.min() < 0:
            raise DataError(f"client_N must be {len(x_ND)} numbers from 0 upwards")
        highest = int(client_N.max())
        names = names or tuple(numbered(client) for client in range(highest + 1))
        if highest >= len(names):
            raise DataError(f"client_N has client {highest}, client_names has {len(names)} names")
    return replace(dataset, x_ND=x_ND, y_N=y_N, client_N=client_N, client_names=names)


def checked_task(task: Task) -> Task:
    """A task that can be learnt, with names for its classes.

    Raises:
        DataError: sizes that make no task, or names that do not fit them.
    """
    least = 2 if task.kind == "classification" else 1
    if task.num_features < 1 or task.num_outputs < least:
        raise DataError(
            f"a {task.kind} task needs at least 1 feature and {least} outputs, "
            f"got {task.num_features} and {task.num_outputs}"
        )
    if task.kind == "regression":
        return task
    names = task.class_names or tuple(str(label) for label in range(task.num_outputs))
    if len(names) != task.num_outputs:
        raise DataError(f"{len(names)} class_names for {task.num_outputs} classes")
    return replace(task, class_names=names)


def _floats(name: str, values: ArrayLike) -> Floats:
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            numbers = _plain(np.asarray(values, dtype=np.float32))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} must be an array of numbers: {error}") from error
    if not np.isfinite(numbers).all():
        place = np.argwhere(~np.isfinite(numbers))[0].tolist()
        raise DataError(f"{name}{place} is {numbers[tuple(place)]}; all must be finite in float32")
    return numbers


def _whole(name: str, values: ArrayLike) -> Ints:
    numbers = np.asarray(values)
    if numbers.dtype.kind not in "iub":
        raise DataError(f"{name} must be whole numbers, got {numbers.dtype}")
    return _plain(numbers.astype(np.int64, copy=False))


def _plain(numbers: NDArray[Any]) -> NDArray[Any]:
    """In order and writable, as torch wants its arrays; a copy only if it is not."""
    return np.require(numbers, requirements=["C", "W"])


def _classes(y: ArrayLike, task: Task) -> Ints:
    y_N = _whole("y", y)
    if y_N.ndim != 1:
        raise DataError(f"y has shape {y_N.shape}, expected (samples,)")
    wrong = y_N[(y_N < 0) | (y_N >= task.num_outputs)]
    if len(wrong):
        raise DataError(f"y has class {wrong[0]}, classes are 0 to {task.num_outputs - 1}")
    return y_N


def _targets(y: ArrayLike, task: Task) -> Floats:
    y_NO = _floats("y", y)
    if y_NO.ndim == 1 and task.num_outputs == 1:
        y_NO = y_NO[:, None]
    if y_NO.ndim != 2 or y_NO.shape[1] != task.num_outputs:
        raise DataError(f"y has shape {y_NO.shape}, expected (samples, {task.num_outputs})")
    return y_NO
