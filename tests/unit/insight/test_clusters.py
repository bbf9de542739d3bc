"""Clusters of clients: against plain loops, and on the digits as clients hold them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from fedmoe.config import load_config
from fedmoe.data.federation import FederatedData
from fedmoe.data.load import load_federation
from fedmoe.insight.clusters import Clusters, cluster_clients
from fedmoe.insight.payloads import Facts, Payloads, Sources

Doubles = NDArray[np.float64]
Told = tuple[Doubles, Doubles, Doubles]


def told_by(samples: Sequence[Sequence[Doubles]]) -> Told:
    """Counts, sums and spreads of clients' samples of each class, (n, D) each."""
    features = samples[0][0].shape[1]
    count = np.array([[len(x) for x in client] for client in samples], dtype=float)
    total = np.zeros((*count.shape, features))
    spread = np.zeros(count.shape)
    for k, client in enumerate(samples):
        for c, x in enumerate(client):
            for one in x:
                total[k, c] += one
            for one in x:
                spread[k, c] += ((one - total[k, c] / len(x)) ** 2).sum()
    return count, total, spread


def clients_of(rules: Sequence[int], seed: int = 0, apart: float = 3.0) -> Told:
    """Clients with 0 to 6 samples of each of 5 classes; class c of rule r is around m[c + r]."""
    rng = np.random.default_rng(seed)
    means = apart * rng.normal(size=(5, 4))
    return told_by(
        [
            [
                means[(c + rule) % 5] + (1 + 0.2 * c) * rng.normal(size=(rng.integers(7), 4))
                for c in range(5)
            ]
            for rule in rules
        ]
    )


def by_loops(count: Doubles, total: Doubles, spread: Doubles, most: int | None) -> Clusters:
    """The formulas of the module's docstring, one pair and one class at a time."""
    clients, classes = count.shape
    freedom = [sum(max(count[k, c] - 1, 0) for k in range(clients)) for c in range(classes)]
    pooled = spread.sum() / sum(freedom)
    trace = [(spread[:, c].sum() + 10 * pooled) / (freedom[c] + 10) for c in range(classes)]
    top = bottom = 0.0
    for k in range(clients):
        for a in range(classes):
            for b in range(a):
                n_a, n_b = count[k, a], count[k, b]
                if n_a and n_b:
                    away = total[k, a] / n_a - total[k, b] / n_b
                    weight = 1 / (1 / n_a + 1 / n_b)
                    top += weight * ((away**2).sum() - trace[a] / n_a - trace[b] / n_b)
                    bottom += weight
    apart = max(top / bottom, 1e-3 * float(np.mean(trace)))

    def odds(one: list[int], other: list[int]) -> float:
        found = 10.0
        for c in range(classes):
            n_a, n_b = count[one, c].sum(), count[other, c].sum()
            if n_a and n_b:
                h = 1 / (1 / n_a + 1 / n_b)
                away = total[one, c].sum(axis=0) / n_a - total[other, c].sum(axis=0) / n_b
                q, g = h * (away**2).sum() / trace[c], 1 + h * apart / trace[c]
                found += 10 / 2 * (math.log(g) - q * (1 - 1 / g))
        return found

    groups = [[k] for k in range(clients) if count[k].sum()]
    best = 0.0
    while len(groups) > 1:
        pairs = [(a, b) for a in range(len(groups)) for b in range(a)]
        best, a, b = max((odds(groups[a], groups[b]), a, b) for a, b in pairs)
        if best < 0 and (most is None or len(groups) <= most):
            break
        groups[b] += groups.pop(a)
        best = 0.0
    label = np.full(clients, -1)
    for place, group in enumerate(sorted(groups, key=min)):
        label[group] = place
    return Clusters(label, len(groups), best)


@pytest.mark.parametrize("most", [None, 2])
@pytest.mark.parametrize("apart", [0.3, 1.0, 3.0])
def test_clusters_are_those_of_the_formulas(apart: float, most: int | None) -> None:
    for seed in range(4):
        told = clients_of([0, 1, 0, 2, 2, 1, 0, 2, 1], seed, apart)
        mine, theirs = cluster_clients(*told, most), by_loops(*told, most)
        np.testing.assert_array_equal(mine.label_K, theirs.label_K)
        assert mine.count == theirs.count
        np.testing.assert_allclose(mine.log_odds, theirs.log_odds, rtol=1e-9)


def test_who_tells_of_no_class_is_in_no_cluster() -> None:
    told = clients_of([0, 1, 0, 1])
    for array in told:
        array[2] = 0
    found = cluster_clients(*told)
    np.testing.assert_array_equal(found.label_K, [0, 1, -1, 1])
    count, total, spread = (0 * array for array in told)
    nothing = cluster_clients(count, total, spread)
    assert (nothing.count, nothing.log_odds) == (0, 0.0)
    np.testing.assert_array_equal(nothing.label_K, -1)


def test_clients_without_a_common_class_are_not_told_apart() -> None:
    count = np.array([[5.0, 0.0], [0.0, 4.0]])
    found = cluster_clients(count, count[..., None] * np.array([1.0, 9.0]), count * 0.1)
    assert found.count == 1


def test_many_clients_are_clustered_as_few_are() -> None:
    """More than are compared with each other: some join, and a rare rule is found among them."""
    rules = [0] * 150 + [1] * 150 + [2] * 3
    found = cluster_clients(*clients_of(rules, seed=3))
    assert found.count == 3
    assert adjusted_rand_score(rules, found.label_K) == 1.0
    two = cluster_clients(*clients_of(rules, seed=3), 2)
    assert two.count == 2 and set(two.label_K.tolist()) == {0, 1}


def digits(partition: str, seed: int) -> tuple[Told, Any]:
    """What 40 clients with some 31 samples of the digits each tell, and their groups."""
    config = load_config([f"+experiment=regimes/{partition.split()[0]}", *partition.split()[1:]])
    federation = load_federation(config.data, config.partition, seed)
    assert isinstance(federation, FederatedData)
    parts = [federation.client(k, "train") for k in range(federation.num_clients)]
    longest = max(len(y) for _, y in parts)
    x = torch.zeros(len(parts), longest, federation.task.num_features)
    y_Cn = torch.zeros(len(parts), longest, dtype=torch.int64)
    real = torch.zeros(len(parts), longest, dtype=torch.bool)
    for k, (own_x, own_y) in enumerate(parts):
        x[k, : len(own_y)], real[k, : len(own_y)] = torch.tensor(own_x), True
        y_Cn[k, : len(own_y)] = torch.tensor(own_y)

    def nothing(*_: str) -> Any:
        raise AssertionError("follows from the data alone")

    facts = Facts(federation.task, config.model, config.insight, None, seed)
    sources = Sources(x, y_Cn, real, change=nothing, load=nothing, part=nothing, answers=nothing)
    by_name = Payloads(facts).by_name
    told = by_name["prototypes"].make(sources) | by_name["traces"].make(sources)
    names = ("prototype_count", "prototype_sum", "class_trace")
    count, total, spread = (told[name].double().numpy() for name in names)
    return (count, total, spread), federation.group_K


@pytest.mark.parametrize("regime", ["permuted", "rotated"])
def test_four_groups_of_digits_are_found_from_insights_alone(regime: str) -> None:
    for seed in range(10):
        told, group_K = digits(regime, seed)
        found = cluster_clients(*told)
        assert adjusted_rand_score(group_K, found.label_K) == 1.0
        assert found.log_odds < -300  # far from merging two of them


@pytest.mark.parametrize(
    "regime", ["iid", "dirichlet partition.alpha=0.1", "dirichlet partition.alpha=0.5"]
)
def test_like_clients_are_one_cluster_however_skewed_their_classes_are(regime: str) -> None:
    for seed in range(10):
        assert cluster_clients(*digits(regime, seed)[0]).count == 1
