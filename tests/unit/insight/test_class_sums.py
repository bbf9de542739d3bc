"""Gaussians from clients' sums, against those of all of their samples together."""

import numpy as np
import pytest
from numpy.typing import NDArray
from payload_cases import CLASSES, FEATURES, SEED, cohort, payload, samples_of, told

from fedmoe.insight.gaussians import ClassSums, spread_of
from fedmoe.insight.payloads.products import unpacked

S = 10.0  # degrees of freedom of the pooled covariance
Doubles = NDArray[np.float64]


def classes() -> list[Doubles]:
    """All clients' samples of each class."""
    sources = cohort()
    both = [one for client in range(4) for one in samples_of(sources, client)]
    return [
        np.array([x for x, y in both if y == label]).reshape(-1, FEATURES)
        for label in range(CLASSES)
    ]


def sums(covariance: str) -> ClassSums:
    gaussians = payload("gaussians", covariance=covariance, min_count_squares=1)
    return ClassSums.of(told(gaussians, cohort()))


def scatters() -> list[Doubles]:
    """Each class's, as a loop over samples."""
    found = []
    for own in classes():
        scatter, mean = np.zeros((FEATURES, FEATURES)), own.mean(axis=0)
        for x in own:
            scatter += np.outer(x - mean, x - mean)
        found.append(scatter)
    return found


FREEDOM = sum(len(own) for own in classes()) - CLASSES
POOLED: Doubles = np.sum(scatters(), axis=0) / FREEDOM


@pytest.mark.parametrize("covariance", ["diagonal", "pooled", "sketch", "class"])
def test_means_and_numbers_are_those_of_all_samples(covariance: str) -> None:
    one = sums(covariance)
    assert one.count_O.tolist() == [len(own) for own in classes()]
    np.testing.assert_allclose(one.mean_OD, [own.mean(axis=0) for own in classes()], rtol=1e-5)
    assert one.freedom == FREEDOM and one.known_O.all()
    assert one.has_directions == (covariance != "diagonal")


@pytest.mark.parametrize("covariance", ["pooled", "sketch", "class"])
def test_directions_are_the_leading_eigenvectors_of_the_pooled_covariance(covariance: str) -> None:
    basis_Dr, variance_r = sums(covariance).directions(2, SEED)
    values, vectors = np.linalg.eigh(POOLED)
    np.testing.assert_allclose(variance_r, values[::-1][:2], rtol=1e-3)
    overlap = np.abs((basis_Dr * vectors[:, ::-1][:, :2]).sum(axis=0))
    np.testing.assert_allclose(overlap, 1, rtol=1e-3)
    np.testing.assert_allclose(basis_Dr.T @ basis_Dr, np.eye(2), atol=1e-6)
    variance_D = sums(covariance).pooled_variance_D()
    np.testing.assert_allclose(variance_D, POOLED.diagonal(), rtol=1e-4)


def test_each_class_s_spread_is_drawn_to_the_pooled_one() -> None:
    one = sums("class")
    basis_Dr = np.linalg.qr(np.random.default_rng(0).standard_normal((FEATURES, 2)))[0]
    products = one.products_Orr(basis_Dr)
    assert products is not None and sums("pooled").products_Orr(basis_Dr) is None
    spread_OR, pooled_rr = spread_of(one, basis_Dr, products)
    np.testing.assert_allclose(pooled_rr, basis_Dr.T @ POOLED @ basis_Dr, rtol=1e-4)
    for label, (own, scatter) in enumerate(zip(classes(), scatters(), strict=True)):
        expected = (scatter + S * POOLED) / (len(own) - 1 + S)
        expected = basis_Dr.T @ expected @ basis_Dr
        np.testing.assert_allclose(unpacked(spread_OR[label]), expected, rtol=1e-4, atol=1e-5)


def test_without_directions_it_is_each_feature_s_variance() -> None:
    found = sums("diagonal").variance_OD()
    for label, (own, scatter) in enumerate(zip(classes(), scatters(), strict=True)):
        expected = (scatter + S * POOLED).diagonal() / (len(own) - 1 + S)
        np.testing.assert_allclose(found[label], expected, rtol=1e-4)


def test_a_class_that_nobody_tells_of_has_the_pooled_spread() -> None:
    arrays = told(payload("gaussians", covariance="class", min_count_squares=1), cohort())
    for name in ("gaussian_count", "gaussian_sum", "gaussian_products"):
        arrays[name][:, 2] = 0
    one = ClassSums.of(arrays)
    assert one.known_O.tolist() == [True, True, False, True]
    products = one.products_Orr(np.eye(FEATURES))
    assert products is not None
    spread_OR, pooled_rr = spread_of(one, np.eye(FEATURES), products)
    np.testing.assert_allclose(unpacked(spread_OR[2]), pooled_rr, rtol=1e-6)
