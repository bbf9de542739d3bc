"""Class Gaussians: sums and squares, against loops over each client's samples."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from payload_cases import CLASSES, COUNTS, FEATURES, cohort, one_of, payload, samples_of, told

from fedmoe.insight.payloads.base import wrong_counts
from fedmoe.insight.payloads.gaussians import unpacked

COVARIANCES = ("diagonal", "pooled", "class")
Arrays = dict[str, NDArray[Any]]


def expected(samples: list[tuple[Any, Any]], covariance: str, fewest: int, clip: float) -> Arrays:
    """Plain loops over samples, features and pairs."""
    count, total = np.zeros(CLASSES), np.zeros((CLASSES, FEATURES))
    squares = np.zeros((CLASSES, FEATURES))
    products = np.zeros((CLASSES, FEATURES, FEATURES))
    for label in range(CLASSES):
        own = [x for x, y in samples if y == label]
        if len(own) < fewest:
            continue
        for x in own:
            length = sum(value**2 for value in x) ** 0.5
            x = x * min(1.0, clip / length)
            count[label] += 1
            for i in range(FEATURES):
                total[label, i] += x[i]
                squares[label, i] += x[i] ** 2
                for j in range(FEATURES):
                    products[label, i, j] += x[i] * x[j]
    found = {"gaussian_count": count, "gaussian_sum": total}
    if covariance != "class":
        found["gaussian_squares"] = squares
    if covariance == "pooled":
        found["gaussian_products"] = products.sum(axis=0)
    if covariance == "class":
        found["gaussian_products"] = products
    return found


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize(("fewest", "clip"), [(1, None), (2, 2.0), (3, None)])
def test_gaussians_are_sums_over_each_clients_samples(
    covariance: str, fewest: int, clip: float | None
) -> None:
    sources = cohort()
    gaussians = payload("gaussians", covariance=covariance, min_count_squares=fewest, clip=clip)
    found = told(gaussians, sources)
    for client in range(len(COUNTS)):
        by_loop = expected(samples_of(sources, client), covariance, fewest, clip or np.inf)
        assert found.keys() == by_loop.keys() == gaussians.shapes.keys()
        for name, array in by_loop.items():
            own = found[name][client]
            assert own.dtype == np.float32 and own.shape == gaussians.shapes[name]
            if name == "gaussian_products":
                own = unpacked(own, FEATURES)
            np.testing.assert_allclose(own, array, rtol=1e-5, atol=1e-5)
    if fewest > 1:
        assert 0 < found["gaussian_count"].sum() < sum(COUNTS)  # some are told, some are not


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_cohort_tells_what_its_clients_tell_one_by_one(covariance: str) -> None:
    gaussians, sources = payload("gaussians", covariance=covariance), cohort()
    together = told(gaussians, sources)
    for client in range(len(COUNTS)):
        for name, array in told(gaussians, one_of(sources, client)).items():
            np.testing.assert_allclose(array[0], together[name][client], rtol=1e-6, atol=1e-6)


def test_the_sums_of_clients_give_the_covariance_of_their_samples_together() -> None:
    sources = cohort()
    gaussians = payload("gaussians", covariance="class", min_count_squares=1)
    total = {name: array.sum(axis=0) for name, array in told(gaussians, sources).items()}
    everything = [pair for client in range(len(COUNTS)) for pair in samples_of(sources, client)]
    for label in range(CLASSES):
        own = np.array([x for x, y in everything if y == label])
        mean = total["gaussian_sum"][label] / total["gaussian_count"][label]
        second = unpacked(total["gaussian_products"][label], FEATURES) / len(own)
        np.testing.assert_allclose(mean, own.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(
            second - np.outer(mean, mean), np.cov(own.T, bias=True), atol=1e-5
        )


NUMBERS = np.array(COUNTS)


@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("seed", range(5))
def test_honest_clients_are_believed(covariance: str, clip: float | None, seed: int) -> None:
    gaussians = payload("gaussians", covariance=covariance, clip=clip)
    assert not gaussians.implausible(told(gaussians, cohort(seed=seed)), NUMBERS).any()


def lie(arrays: Arrays, name: str, place: tuple[int, ...], value: float) -> Arrays:
    """The first client's, with one number replaced."""
    spoilt = {key: array.copy() for key, array in arrays.items()}
    spoilt[name][(0, *place)] = value
    return spoilt


# By name, what of which array is told instead; `label` is a class that the first client has.
LIES: dict[str, Any] = {
    "a class too small to tell": ("gaussian_count", 2.0),
    "half a sample": ("gaussian_count", 3.5),
    "fewer than none": ("gaussian_count", -3.0),
    "more samples than there are": ("gaussian_count", 13.0),
    "negative squares": ("gaussian_squares", -1.0),
    "squares too small for the sum": ("gaussian_squares", 1e-3),
    "a sum too large for the squares": ("gaussian_sum", 1e3),
    "inputs longer than the clip": ("gaussian_squares", 1e3),
}


@pytest.mark.parametrize("lied", LIES)
@pytest.mark.parametrize("covariance", ["diagonal", "pooled"])
def test_lies_are_refused_and_only_they(lied: str, covariance: str) -> None:
    gaussians = payload("gaussians", covariance=covariance, clip=10.0)
    honest = told(gaussians, cohort())
    label = int(honest["gaussian_count"][0].argmax())
    name, value = LIES[lied]
    place = (label,) if name == "gaussian_count" else (label, FEATURES - 1)
    bad = gaussians.implausible(lie(honest, name, place, value), NUMBERS)
    assert bad.tolist() == [True, False, False, False]


@pytest.mark.parametrize("covariance", ["pooled", "class"])
def test_products_that_are_no_covariance_are_refused(covariance: str) -> None:
    gaussians = payload("gaussians", covariance=covariance)
    honest = told(gaussians, cohort())
    label = int(honest["gaussian_count"][0].argmax())
    at = () if covariance == "pooled" else (label,)
    pair = honest["gaussian_products"][(0, *at)]
    # The first row of the triangle: a square, and its products with the others.
    for place, value in ((1, 10 * pair[0]), (0, -pair[0])):
        bad = gaussians.implausible(lie(honest, "gaussian_products", (*at, place), value), NUMBERS)
        assert bad.tolist() == [True, False, False, False]


def test_products_too_small_for_the_sums_of_several_features_are_refused() -> None:
    gaussians = payload("gaussians", covariance="pooled")
    lies = {name: np.zeros((2, *shape)) for name, shape in gaussians.shapes.items()}
    lies["gaussian_count"][:, 1] = 5
    lies["gaussian_squares"][:, 1] = 5
    lies["gaussian_products"][:, [0, 3, 5]] = 5  # the diagonal: features are uncorrelated
    lies["gaussian_sum"][0, 1] = 1
    lies["gaussian_sum"][1, 1] = 4  # each feature's own would do: 4^2 < 5 * 5
    assert gaussians.implausible(lies, np.array([5, 5])).tolist() == [False, True]


@pytest.mark.parametrize(
    ("counts", "bad"),
    [
        ([0, 0], False), ([3, 7], False), ([0, 10], False), ([2, 8], True), ([0, 11], True),
        ([3.5, 3], True), ([-3, 8], True),
    ],
)  # fmt: skip
def test_counts_are_whole_and_enough_and_no_more_than_there_are(
    counts: list[float], bad: bool
) -> None:
    assert wrong_counts(np.array([counts]), np.array([10]), fewest=3).tolist() == [bad]


def test_products_without_samples_are_refused() -> None:
    gaussians = payload("gaussians", covariance="pooled")
    nothing = {name: np.zeros((1, *shape)) for name, shape in gaussians.shapes.items()}
    assert not gaussians.implausible(nothing, np.array([5])).any()
    for name in ("gaussian_sum", "gaussian_squares", "gaussian_products"):
        spoilt = {**nothing, name: nothing[name].copy()}
        spoilt[name].flat[0] = 1.0
        assert gaussians.implausible(spoilt, np.array([5])).all()


@pytest.mark.parametrize(("covariance", "numbers"), [("diagonal", 0), ("pooled", 6), ("class", 24)])
def test_the_size_is_known_beforehand(covariance: str, numbers: int) -> None:
    gaussians = payload("gaussians", covariance=covariance)
    squares = 0 if covariance == "class" else CLASSES * FEATURES
    assert gaussians.nbytes == 4 * (CLASSES + CLASSES * FEATURES + squares + numbers)
    sent = told(gaussians, cohort())
    assert gaussians.nbytes == sum(array[0].nbytes for array in sent.values())
