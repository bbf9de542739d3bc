"""What clients tell in the benchmark of the MetaLearner's time: drawn, as they would tell it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmoe.insight.columns import Columns
from fedmoe.insight.payloads.products import packed

CLASSES, GROUPS, SAMPLES = 10, 4, 31  # as digits have them, spread over 40 clients
Make = Callable[[np.random.Generator, int, int], Columns]


def nothing(rng: np.random.Generator, clients: int, features: int) -> Columns:
    """For policies that read numbers alone."""
    del rng, clients, features
    return {}


def statistics(rng: np.random.Generator, clients: int, features: int) -> Columns:
    """Of linear regressions whose coefficients are alike."""
    x = rng.normal(size=(clients, SAMPLES, features + 1))
    x[..., -1] = 1
    theta = rng.normal(size=(features + 1, 1)) + 0.5 * rng.normal(size=(clients, features + 1, 1))
    y = x @ theta + 0.7 * rng.normal(size=(clients, SAMPLES, 1))
    return _as_told(
        statistics_xx=x.mT @ x, statistics_xy=x.mT @ y, statistics_yy=(y**2).sum(axis=1)
    )


def classes(rng: np.random.Generator, clients: int, features: int) -> Columns:
    """Of skewed classes around means that some groups of clients name in other ways."""
    means = rng.normal(size=(CLASSES, features))
    shares = rng.dirichlet(np.full(CLASSES, 0.5), size=clients)
    count = np.array([rng.multinomial(SAMPLES, share) for share in shares], dtype=np.float64)
    count[count < 2] = 0
    rule = rng.integers(GROUPS, size=clients)
    named = (np.arange(CLASSES) + rule[:, None]) % CLASSES
    noise = rng.normal(size=(clients, CLASSES, features), scale=1.5)
    sums = count[..., None] * means[named] + np.sqrt(count)[..., None] * noise
    trace = features * 1.5**2 * np.maximum(count - 1, 0)
    return _as_told(prototype_count=count, prototype_sum=sums, class_trace=trace)


def gaussians(rng: np.random.Generator, clients: int, features: int) -> Columns:
    """Of the same classes, with the sums of products that belong to them."""
    told = classes(rng, clients, features)
    count, sums, trace = (
        told[name].astype(np.float64)
        for name in ("prototype_count", "prototype_sum", "class_trace")
    )
    squares = (sums**2).sum(axis=2) / np.maximum(count, 1)
    between = np.swapaxes(sums / np.sqrt(np.maximum(count, 1))[..., None], 1, 2)
    whole = between @ np.swapaxes(between, 1, 2)
    whole += np.eye(features) * (trace.sum(axis=1) / features)[:, None, None]
    return {
        **told,
        **_as_told(
            gaussian_count=count, gaussian_sum=sums, gaussian_totals=squares + trace,
            gaussian_products=packed(whole),
        ),
    }  # fmt: skip


def _as_told(**arrays: NDArray[np.float64]) -> Columns:
    return {name: array.astype(np.float32) for name, array in arrays.items()}


class Case(NamedTuple):
    """A row's policy.

    Attributes:
        name: of the row.
        words: of the configuration.
        features: of the data that payloads tell of.
        make: the payloads.
        most: clients at most; more do not fit this machine.
    """

    name: str
    words: tuple[str, ...]
    features: int = 0
    make: Make = nothing
    most: int = 10_000


CASES = [
    Case("none", ("meta_learner=none",)),
    Case("step_size", ("meta_learner=step_size",)),
    Case("step_size, per client", ("meta_learner=step_size", "meta_learner.step_size.per=client")),
    Case("hyperparameters", ("meta_learner=hyperparameters",)),
    Case("selection", ("meta_learner=selection",)),
    Case("prior, 10 features", ("meta_learner=prior",), 10, statistics),
    Case("prior, 50 features", ("meta_learner=prior",), 50, statistics, 1000),
    Case("prototypes, 64 features", ("meta_learner=prototypes",), 64, classes),
    Case("prototypes, 784 features", ("meta_learner=prototypes",), 784, classes, 1000),
    Case("gaussians, 64 features", ("meta_learner=gaussians",), 64, gaussians, 1000),
    Case("expert_assignment, 64 features", ("meta_learner=expert_assignment",), 64, classes),
    Case(
        "expert_assignment, 784 features", ("meta_learner=expert_assignment",), 784, classes, 1000
    ),
]
