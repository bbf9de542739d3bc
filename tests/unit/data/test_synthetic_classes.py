"""The synthetic classes: what is drawn, and that they can be learnt, the worse the more skewed."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmoe.data import FederatedData, LazyDataset, LazyFederation, load_federation
from fedmoe.data.sources import read_source
from fedmoe.errors import DataError
from fedmoe.schema import IidConfig, NaturalConfig, SyntheticClassesConfig

NATURAL = NaturalConfig(name="natural", min_samples=10)


def config(**changes: Any) -> SyntheticClassesConfig:
    values: dict[str, Any] = {
        "name": "synthetic_classes",
        "on_missing": "error",
        "validation_fraction": 0.1,
        "test_fraction": 0.2,
        "num_clients": 100_000,
        "samples_per_client": 200,
        "num_features": 64,
        "num_classes": 10,
        "alpha": 0.5,
        "separation": 4.0,
    }
    return SyntheticClassesConfig(**(values | changes))


def load(seed: int = 0, **changes: Any) -> LazyFederation:
    federation = load_federation(config(**changes), NATURAL, seed)
    assert isinstance(federation, LazyFederation)
    return federation


def made(clients: Any, seed: int = 0, **changes: Any) -> FederatedData:
    return load(seed, **changes).only(np.asarray(clients))


def test_a_client_is_the_same_alone_in_a_cohort_and_by_itself() -> None:
    dataset = read_source(config(), np.random.default_rng(1))
    assert isinstance(dataset, LazyDataset)
    assert dataset.build_many is not None
    together = dataset.build_many(np.array([99_999, 4, 7]))
    for place, client in enumerate([99_999, 4, 7]):
        x_nD, y_n = dataset.build(client)
        np.testing.assert_array_equal(together.x_ND.reshape(3, 200, 64)[place], x_nD)
        np.testing.assert_array_equal(together.y_N.reshape(3, 200)[place], y_n)
    assert together.count_C.tolist() == [200] * 3
    assert [str(a.dtype) for a in (together.x_ND, together.y_N)] == ["float32", "int64"]


def test_clients_and_seeds_differ() -> None:
    # Without separation the samples are nothing but their noise.
    one, other = (made([5, 6], seed, separation=0.0) for seed in (0, 1))
    x_CnD = one.x_ND.reshape(2, 200, 64)
    assert abs(np.corrcoef(x_CnD[0].ravel(), x_CnD[1].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(one.x_ND.ravel(), other.x_ND.ravel())[0, 1]) < 0.05


def test_another_process_makes_the_same_client() -> None:
    program = (
        "import numpy as np; import test_synthetic_classes as t; "
        "x, y = t.load().client(777, 'train'); print(float(x.sum(dtype=np.float64)), *y)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        cwd=__file__.rpartition("/")[0],
    )  # fmt: skip
    x_nD, y_n = load().client(777, "train")
    assert run.stdout.split() == [str(float(x_nD.sum(dtype=np.float64))), *map(str, y_n)]


def test_centres_are_shared_and_lie_the_separation_apart() -> None:
    data = made(range(200), num_features=400, separation=6.0)
    owner_N = np.repeat(np.arange(200), 200)
    centres = [
        np.stack([data.x_ND[(data.y_N == label) & half].mean(axis=0) for label in range(10)])
        for half in (owner_N < 100, owner_N >= 100)
    ]
    np.testing.assert_allclose(centres[0], centres[1], atol=0.2)  # the mean of about 2,000
    distance = np.linalg.norm(centres[0][:, None] - centres[0], axis=-1)
    np.testing.assert_allclose(distance[~np.eye(10, dtype=bool)], 6.0, atol=0.8)


def test_noise_has_mean_0_and_deviation_1() -> None:
    data = made(range(50), separation=0.0)
    assert abs(data.x_ND.mean()) < 0.005
    np.testing.assert_allclose(data.x_ND.std(axis=0), 1.0, atol=0.02)
    assert np.abs(data.x_ND).max() <= np.sqrt(3) + 1e-6
    assert np.abs(np.corrcoef(data.x_ND[:, :8].T) - np.eye(8)).max() < 0.05


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_classes_are_skewed_as_the_dirichlet_says(alpha: float) -> None:
    share_CO = shares(made(range(2000), alpha=alpha, num_features=1, num_classes=4))
    np.testing.assert_allclose(share_CO.mean(axis=0), 0.25, atol=0.04)
    # A share's variance: that of the Dirichlet, and of 200 draws from it.
    dirichlet = 0.25 * 0.75 / (4 * alpha + 1)
    expected = dirichlet + (0.25 * 0.75 - dirichlet) / 200
    np.testing.assert_allclose(share_CO.var(axis=0), expected, rtol=0.15)


def shares(data: FederatedData) -> NDArray[np.float64]:
    y_Cn = data.y_N.reshape(-1, 200)
    return np.stack([(y_Cn == label).mean(axis=1) for label in range(4)], axis=1)


def test_size_is_known_without_making_anybody() -> None:
    federation = load(num_clients=10**7)
    assert (federation.num_clients, federation.num_samples) == (10**7, 2 * 10**9)
    assert federation.task.class_names == tuple("0123456789")


def test_only_the_natural_partition_is_possible() -> None:
    iid = IidConfig(name="iid", min_samples=10, num_clients=5)
    with pytest.raises(DataError, match=r"iid: synthetic_classes makes .* partition=natural"):
        load_federation(config(), iid, 0)


def test_too_few_samples_are_refused_at_once() -> None:
    with pytest.raises(DataError, match=r"client 0 has 9 samples, partition\.min_samples is 10"):
        load(samples_per_client=9)


# ------------------------------------------------------------------------- learning


def federated_accuracy(alpha: float, rounds: int, clients: int = 30) -> float:
    """Test accuracy of softmax regression by FedAvg, written out, with 10 local steps a round."""
    data = made(range(clients), alpha=alpha, separation=5.0)
    weight_DO = np.zeros((65, 10))
    for _ in range(rounds):
        trained = [fit(weight_DO, *data.client(client, "train")) for client in range(clients)]
        weight_DO = np.mean(trained, axis=0)
    rows = data.parts["test"].order
    guess = (with_bias(data.x_ND[rows]) @ weight_DO).argmax(axis=1)
    return float((guess == data.y_N[rows]).mean())


def fit(weight_DO: NDArray[Any], x_nD: NDArray[Any], y_n: NDArray[Any]) -> NDArray[Any]:
    for _ in range(10):
        logits = with_bias(x_nD) @ weight_DO
        chance = np.exp(logits - logits.max(axis=1, keepdims=True))
        chance /= chance.sum(axis=1, keepdims=True)
        error = chance - np.eye(10)[y_n]
        weight_DO = weight_DO - 0.5 * with_bias(x_nD).T @ error / len(x_nD)
    return weight_DO


def with_bias(x_nD: NDArray[Any]) -> NDArray[Any]:
    return np.column_stack([x_nD, np.ones(len(x_nD))])


def test_federated_averaging_learns_the_better_the_less_the_labels_are_skewed() -> None:
    even, skewed = (federated_accuracy(alpha, rounds=1) for alpha in (100.0, 0.02))
    assert even > 0.9
    assert 0.5 < skewed < even - 0.05  # chance is 0.1
    assert skewed + 0.03 < federated_accuracy(0.02, rounds=4) < even
