"""Rules by medians: who is believed, against plain loops, and that most honest clients are."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2
from test_clusters import clients_of, digits

from fedmoe.insight.clusters import cluster_clients
from fedmoe.insight.policies.robust import (
    beyond_chance,
    class_spread,
    plausible,
    shares_kept,
    unlike,
    vet_classes,
)

Doubles = NDArray[np.float64]
CLIENTS = 20


def honest(seed: int = 0) -> tuple[Doubles, Doubles, Doubles]:
    return clients_of([0] * CLIENTS, seed)


def test_spread_of_classes_is_that_of_a_loop() -> None:
    count, total, _ = honest()
    count[3], total[3] = 0, 0
    for k in range(CLIENTS):
        means = [total[k, c] / count[k, c] for c in range(5) if count[k, c]]
        middle = sum(means) / max(len(means), 1)
        expected = sum(((m - middle) ** 2).sum() for m in means) / max(len(means), 1)
        assert class_spread(count, total)[k] == pytest.approx(expected)


def test_honest_clients_are_believed() -> None:
    for seed in range(10):
        vetted = vet_classes(*honest(seed))
        assert not vetted.suspects and not vetted.capped
        assert (vetted.weight_K == 1).all()


@pytest.mark.parametrize(
    ("array", "factor", "reason"),
    [
        (1, 10.0, "spread of classes"),
        (1, 0.1, "spread of classes"),
        (2, 100.0, "spread within classes"),
        (2, 0.0, "spread within classes"),
    ],
)
def test_absurd_spreads_are_not_believed(array: int, factor: float, reason: str) -> None:
    told = honest()
    enough = int(np.argmax(told[0].sum(axis=1)))
    told[array][enough] *= factor
    vetted = vet_classes(*told)
    assert list(vetted.suspects) == [enough] and reason in vetted.suspects[enough]
    assert vetted.weight_K[enough] == 0 and not vetted.trace_KO[enough].any()


def test_traces_of_few_samples_are_only_cut() -> None:
    count, total, trace = honest()
    count[4], total[4], trace[4] = 0, 0, 0
    count[4, 1], trace[4, 1], total[4, 1] = 3, 1e9, 3 * total[5, 1] / max(count[5, 1], 1)
    vetted = vet_classes(count, total, trace)
    assert 4 not in vetted.suspects and vetted.weight_K[4] == 1
    wide = [trace[k].sum() / max(sum(max(n - 1, 0) for n in count[k]), 1) for k in range(CLIENTS)]
    most = 5 * float(np.median([x for x in wide if x > 0]))
    assert vetted.trace_KO[4, 1] == pytest.approx(2 * most)


def test_many_samples_count_for_five_times_the_median() -> None:
    told = honest()
    before = told[0].sum(axis=1)
    for array in told:
        array[7] *= 40
    vetted = vet_classes(*told)
    sizes = told[0].sum(axis=1)
    assert vetted.capped == [7] and 7 not in vetted.suspects
    assert vetted.weight_K[7] * sizes[7] == pytest.approx(5 * float(np.median(sizes)))
    assert before[7] < sizes[7]
    assert (shares_kept(np.array([1.0, 2.0, 1e9])) == 1).all()  # too few to have a median


def test_copies_count_for_one_client_together() -> None:
    told = honest()
    for array in told:
        array[[3, 9]] = array[1]
    vetted = vet_classes(*told)
    assert sorted(vetted.suspects) == [1, 3, 9]
    np.testing.assert_allclose(vetted.weight_K[[1, 3, 9]], 1 / 3)


@pytest.mark.parametrize(
    ("sizes", "named"), [([36, 4], 1), ([36, 3, 1], 2), ([30, 5, 5], 0), ([4] * 10, 0), ([3], 0)]
)
def test_small_clusters_are_unlike_unless_most_are(sizes: list[int], named: int) -> None:
    label = np.repeat(np.arange(len(sizes)), sizes)
    label = np.append(label, -1)
    expected = {k for k in range(len(label) - 1) if 0 < label[k] <= named}
    assert set(unlike(label)) == expected


def test_beyond_chance_is_a_quantile_of_the_chi_squared() -> None:
    rng = np.random.default_rng(0)
    freedom = rng.integers(0, 12, 30).astype(float)
    square = 7.0 * np.where(freedom > 0, rng.chisquare(np.maximum(freedom, 1)), 1e9)
    square[5], freedom[5] = 1e4, 8.0
    ratio = [s / chi2.median(f) for s, f in zip(square, freedom, strict=True) if f]
    expected = [
        k for k, (s, f) in enumerate(zip(square, freedom, strict=True))
        if f and s / chi2.median(f) > float(np.median(ratio))
        * max(3.0, chi2.isf(1e-3 / len(ratio), f) / chi2.median(f))
    ]  # fmt: skip
    assert list(beyond_chance(square, freedom, "noise")) == expected == [5]
    assert not beyond_chance(square[:3], np.ones(3), "noise")


def test_absurd_numbers_count_as_the_median() -> None:
    told = np.array([1.0, 2.0, 3.0, 50.0, 1e6])
    np.testing.assert_array_equal(plausible(told), [1.0, 2.0, 3.0, 30.0, 3.0])
    assert not len(plausible(told[:0]))


@pytest.mark.parametrize("regime", ["dirichlet partition.alpha=0.1", "permuted", "iid"])
def test_honest_clients_of_the_digits_are_not_named(regime: str) -> None:
    for seed in range(10):
        told, _ = digits(regime, seed)
        vetted = vet_classes(*told)
        weight = vetted.weight_K
        found = cluster_clients(
            told[0] * weight[:, None], told[1] * weight[:, None, None], vetted.trace_KO
        )
        assert not vetted.suspects and not unlike(found.label_K)
        assert math.isfinite(found.log_odds)
