"""Spreads: products in the directions that clients were told, against loops over samples."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from payload_cases import CLASSES, COUNTS, FEATURES, RANK, cohort, one_of, payload, samples_of, told

from fedmoe.insight.payloads import Payload
from fedmoe.insight.payloads.products import unpacked

NUMBERS = np.array(COUNTS)


def spreads(fewest: int = 3, clip: float | None = None) -> Payload:
    return payload("spreads", rank=RANK, min_count_squares=fewest, clip=clip)


@pytest.mark.parametrize(("fewest", "clip"), [(1, None), (2, 2.0), (3, None)])
def test_spreads_are_sums_over_each_clients_samples(fewest: int, clip: float | None) -> None:
    sources = cohort()
    found = unpacked(told(spreads(fewest, clip), sources)["spread_products"])
    assert found.shape == (len(COUNTS), CLASSES, RANK, RANK)
    basis = sources.part("gaussian_basis").double().numpy()
    for client in range(len(COUNTS)):
        for label in range(CLASSES):
            own = [x for x, y in samples_of(sources, client) if y == label]
            expected = np.zeros((RANK, RANK))
            for x in own if len(own) >= fewest else []:
                length = np.sqrt(sum(value**2 for value in x))
                x = x * (1.0 if clip is None else min(1.0, clip / length))
                for i in range(RANK):
                    for j in range(RANK):
                        expected[i, j] += (basis[client, :, i] @ x) * (basis[client, :, j] @ x)
            np.testing.assert_allclose(found[client, label], expected, rtol=1e-4, atol=1e-4)


def test_a_cohort_tells_what_its_clients_tell_one_by_one() -> None:
    sources = cohort()
    together = told(spreads(), sources)["spread_products"]
    for client in range(len(COUNTS)):
        alone = told(spreads(), one_of(sources, client))["spread_products"]
        np.testing.assert_allclose(alone[0], together[client], rtol=1e-5, atol=1e-5)


def test_in_all_directions_they_are_the_products() -> None:
    """A basis of all axes; and no more directions than there are features."""
    sources, axes = cohort(), torch.eye(FEATURES).expand(len(COUNTS), -1, -1)
    whole = payload("spreads", rank=99)
    found = told(whole, replace(sources, part=lambda _: axes))["spread_products"]
    products = told(payload("gaussians", covariance="class"), sources)["gaussian_products"]
    np.testing.assert_allclose(found, products, rtol=1e-5)
    assert whole.nbytes == found[0].nbytes


@pytest.mark.parametrize("seed", range(4))
def test_only_lies_are_refused(seed: int) -> None:
    honest = told(spreads(), cohort(seed=seed))
    assert not spreads().implausible(honest, NUMBERS).any()
    label = int(np.abs(honest["spread_products"][0]).max(axis=1).argmax())
    for place, value in ((0, -1.0), (1, 1e4)):  # a square, and a product
        spoilt = {"spread_products": honest["spread_products"].copy()}
        spoilt["spread_products"][0, label, place] = value
        assert spreads().implausible(spoilt, NUMBERS).tolist() == [True, False, False, False]
