"""Clusters of updates' sketches: found where there are several, and none made up."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import silhouette_score

from fedmoe.insight.sketches import LEAST, cluster_sketches, silhouette

Doubles = NDArray[np.float64]


def sketches(rules: list[int], noise: float, seed: int = 0) -> Doubles:
    """Each rule's direction, and what each client's own data add."""
    rng = np.random.default_rng(seed)
    way_GM = rng.standard_normal((max(rules) + 1, 32))
    found = way_GM[rules] + noise * rng.standard_normal((len(rules), 32))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("groups", [2, 3, 5])
def test_groups_are_found_with_their_number(groups: int, seed: int) -> None:
    rules = [client % groups for client in range(30)]
    found = cluster_sketches(sketches(rules, 0.7, seed))
    assert found.label_K.tolist() == rules and found.silhouette >= LEAST


@pytest.mark.parametrize("seed", range(5))
def test_one_rule_is_one_cluster(seed: int) -> None:
    found = cluster_sketches(sketches([0] * 30, 1.0, seed))
    assert found.label_K.tolist() == [0] * 30 and found.silhouette < LEAST


def test_who_told_nothing_is_in_no_cluster_and_there_are_no_more_than_asked_for() -> None:
    sketch_Km = sketches([0, 1, 2, 0, 1, 2, 0, 1, 2], 0.3)
    sketch_Km[4] = 0
    assert cluster_sketches(sketch_Km).label_K.tolist() == [0, 1, 2, 0, -1, 2, 0, 1, 2]
    assert cluster_sketches(sketch_Km, 2).label_K.max() <= 1
    assert cluster_sketches(sketch_Km, 1).label_K.max() == 0
    assert cluster_sketches(sketch_Km[:2]).label_K.tolist() == [0, 0]
    assert cluster_sketches(np.zeros((3, 4))).label_K.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("seed", range(3))
def test_the_silhouette_is_scikit_learn_s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((12, 3))
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    label = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 0, 1])  # one is alone
    assert silhouette(distance, label) == pytest.approx(
        silhouette_score(distance, label, metric="precomputed")
    )
