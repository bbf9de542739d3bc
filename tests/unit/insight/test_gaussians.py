"""Class Gaussians: sums and squares, against loops over each client's samples."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from payload_cases import (
    CLASSES,
    COUNTS,
    FEATURES,
    SEED,
    cohort,
    one_of,
    payload,
    samples_of,
    told,
)

from fedmoe.data.drawing import Stream, generator
from fedmoe.insight.payloads.base import wrong_counts
from fedmoe.insight.payloads.gaussians import Gaussians
from fedmoe.insight.payloads.products import unpacked

COVARIANCES = ("diagonal", "pooled", "sketch", "class")
Arrays = dict[str, NDArray[Any]]


def sketching() -> NDArray[Any]:
    """As the seed has it."""
    return generator(SEED, Stream.SKETCHING).standard_normal((FEATURES, FEATURES))


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
    if covariance == "diagonal":
        found["gaussian_squares"] = squares
    if covariance in ("pooled", "sketch"):
        found["gaussian_totals"] = squares.sum(axis=1)
    if covariance == "pooled":
        found["gaussian_products"] = products.sum(axis=0)
    if covariance == "sketch":
        found["gaussian_squares"] = squares.sum(axis=0)
        columns = np.zeros((FEATURES, FEATURES))
        for i in range(FEATURES):
            for j in range(FEATURES):
                columns[i] += products.sum(axis=0)[i, j] * sketching()[j]
        found["gaussian_sketch"] = columns
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
                own = unpacked(own)
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
        second = unpacked(total["gaussian_products"][label]) / len(own)
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


# By name, which number of which array is told instead; -1 stands for a class that is told.
LIES: dict[str, Any] = {
    "a class too small to tell": ("diagonal", "gaussian_count", (-1,), 2.0),
    "half a sample": ("diagonal", "gaussian_count", (-1,), 3.5),
    "fewer than none": ("diagonal", "gaussian_count", (-1,), -3.0),
    "more samples than there are": ("diagonal", "gaussian_count", (-1,), 13.0),
    "negative squares": ("diagonal", "gaussian_squares", (-1, 2), -1.0),
    "squares too small for the sum": ("diagonal", "gaussian_squares", (-1, 2), 1e-3),
    "a sum too large for the squares": ("diagonal", "gaussian_sum", (-1, 0), 50.0),
    "inputs longer than the clip": ("diagonal", "gaussian_squares", (-1, 0), 1e3),
    "a sum too large for the total": ("pooled", "gaussian_sum", (-1, 0), 50.0),
    "a total that is not the products'": ("pooled", "gaussian_totals", (-1,), 200.0),
    "a negative square among products": ("pooled", "gaussian_products", (0,), -3.0),
    "a large product": ("pooled", "gaussian_products", (1,), 1e3),
    "a large product of a class": ("class", "gaussian_products", (-1, 1), 1e3),
    "a total that is not the squares'": ("sketch", "gaussian_totals", (-1,), 200.0),
    "small squares": ("sketch", "gaussian_squares", (2,), 0.0),
    "a sketch of nothing symmetric": ("sketch", "gaussian_sketch", (0, 0), 100.0),
}


@pytest.mark.parametrize("lied", LIES)
def test_lies_are_refused_and_only_they(lied: str) -> None:
    covariance, name, place, value = LIES[lied]
    gaussians = payload("gaussians", covariance=covariance, clip=10.0)
    honest = told(gaussians, cohort())
    label = int(honest["gaussian_count"][0].argmax())
    at = tuple(label if index == -1 else index for index in place)
    bad = gaussians.implausible(lie(honest, name, at, value), NUMBERS)
    assert bad.tolist() == [True, False, False, False]


def test_a_sketch_of_what_is_no_covariance_is_refused() -> None:
    gaussians = payload("gaussians", covariance="sketch")
    spoilt = told(gaussians, cohort())
    spoilt["gaussian_sketch"][0] *= -1
    assert gaussians.implausible(spoilt, NUMBERS).tolist() == [True, False, False, False]


def test_a_sketch_has_the_leading_directions() -> None:
    """Of products that span few directions, as Nystroem's formula has them, all."""
    gaussians = payload("gaussians", covariance="sketch", min_count_squares=1)
    assert isinstance(gaussians, Gaussians)
    sources = cohort()
    flat = replace(sources, x_CnD=sources.x_CnD * torch.tensor([1.0, 1.0, 0.0]))
    sketch_DW = told(gaussians, flat)["gaussian_sketch"].sum(axis=0).astype(np.float64)
    columns_DW = sketching()
    middle = np.linalg.pinv(columns_DW.T @ sketch_DW, rcond=1e-6)
    found = sketch_DW @ middle @ sketch_DW.T
    xs = [x for client in range(len(COUNTS)) for x, _ in samples_of(flat, client)]
    np.testing.assert_allclose(found, sum(np.outer(x, x) for x in xs), rtol=1e-3, atol=1e-3)


def made_up(covariance: str, products: Any, total: Any) -> Arrays:
    """What a client tells of five samples of class 1, of these products and this sum."""
    shapes = payload("gaussians", covariance=covariance).shapes
    arrays = {name: np.zeros((1, *shape)) for name, shape in shapes.items()}
    products_DD, square_D = np.array(products), np.diag(products)
    arrays["gaussian_count"][0, 1], arrays["gaussian_sum"][0, 1] = 5, total
    if "gaussian_totals" in arrays:
        arrays["gaussian_totals"][0, 1] = square_D.sum()
    if "gaussian_squares" in arrays:
        arrays["gaussian_squares"][(0, 1) if covariance == "diagonal" else 0] = square_D
    if covariance == "sketch":
        arrays["gaussian_sketch"][0] = products_DD @ sketching()
    elif "gaussian_products" in arrays:
        packed = products_DD[np.triu_indices(FEATURES)]
        arrays["gaussian_products"][(0, 1) if covariance == "class" else 0] = packed
    return arrays


def is_refused(covariance: str, arrays: Arrays) -> bool:
    gaussians = payload("gaussians", covariance=covariance, min_count_squares=1)
    return bool(gaussians.implausible(arrays, np.array([5]))[0])


@pytest.mark.parametrize("covariance", ["pooled", "sketch", "class"])
def test_products_too_small_for_the_sums_of_several_features_are_refused(covariance: str) -> None:
    assert not is_refused(covariance, made_up(covariance, 5 * np.eye(3), [1, 1, 1]))
    # Each feature's own would do, as 4^2 < 5 * 5, but of their sum 12^2 > 5 * 15.
    assert is_refused(covariance, made_up(covariance, 5 * np.eye(3), [4, 4, 4]))


@pytest.mark.parametrize("covariance", ["diagonal", "sketch"])
def test_squares_too_small_for_one_feature_s_sum_are_refused(covariance: str) -> None:
    large = made_up(covariance, np.diag([4, 50, 5]), [4, 0, 0])
    assert not is_refused(covariance, large)
    of_1 = (0, 1) if covariance == "diagonal" else 0
    large["gaussian_squares"][of_1] = [1, 53, 5]
    assert is_refused(covariance, large)


def test_a_total_too_small_for_one_class_s_sum_is_refused() -> None:
    """Though that of all classes is what the products have."""
    arrays = made_up("pooled", 5 * np.eye(3), [3, 0, 0])
    arrays["gaussian_count"][0] = [0, 4, 0, 1]
    arrays["gaussian_totals"][0] = [0, 6, 0, 9]
    assert not is_refused("pooled", arrays)
    arrays["gaussian_totals"][0] = [0, 1, 0, 14]
    assert is_refused("pooled", arrays)


def test_a_sketch_of_nothing_symmetric_is_refused() -> None:
    turned = [[5, 0.1, 0], [-0.1, 5, 0], [0, 0, 5]]
    assert is_refused("sketch", made_up("sketch", turned, [1, 1, 1]))


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
    for name in ("gaussian_sum", "gaussian_totals", "gaussian_products"):
        spoilt = {**nothing, name: nothing[name].copy()}
        spoilt[name].flat[0] = 1.0
        assert gaussians.implausible(spoilt, np.array([5])).all()


@pytest.mark.parametrize(
    ("covariance", "numbers"),
    [("diagonal", 12), ("pooled", 4 + 6), ("sketch", 4 + 3 + 9), ("class", 24)],
)
def test_the_size_is_known_beforehand(covariance: str, numbers: int) -> None:
    gaussians = payload("gaussians", covariance=covariance)
    assert gaussians.nbytes == 4 * (CLASSES + CLASSES * FEATURES + numbers)
    sent = told(gaussians, cohort())
    assert gaussians.nbytes == sum(array[0].nbytes for array in sent.values())
