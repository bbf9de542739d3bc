import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from fedmoe.data import Dataset, FederatedData, Rows, Task, class_counts, load_federation, pooled
from fedmoe.data.load import standardised
from fedmoe.data.partition import PARTITIONERS
from fedmoe.data.sources import read_source
from fedmoe.errors import DataError
from fedmoe.schema import (
    DigitsConfig,
    DirichletConfig,
    IidConfig,
    LabelPermutationConfig,
    NaturalConfig,
    QuantityConfig,
    RotationConfig,
    ShardsConfig,
    SyntheticLinearConfig,
)

DIGITS = DigitsConfig(name="digits", on_missing="error", validation_fraction=0.1, test_fraction=0.2)
LINEAR = SyntheticLinearConfig(
    name="synthetic_linear",
    on_missing="error",
    validation_fraction=0.1,
    test_fraction=0.2,
    num_clients=7,
    samples_per_client=10,
    num_features=3,
    noise=0.1,
    deviation=1.0,
    shift=0.0,
)
COMMON: dict[str, Any] = {"num_clients": 12, "min_samples": 5}
PARTITIONS: list[Any] = [
    IidConfig(name="iid", **COMMON),
    DirichletConfig(name="dirichlet", alpha=0.3, **COMMON),
    ShardsConfig(name="shards", shards_per_client=2, **COMMON),
    QuantityConfig(name="quantity", alpha=0.5, **COMMON),
    RotationConfig(name="rotation", num_groups=4, **COMMON),
    LabelPermutationConfig(name="label_permutation", num_groups=3, **COMMON),
]


def load(*arguments: Any) -> FederatedData:
    return pooled(load_federation(*arguments))


def same(one: FederatedData, other: FederatedData) -> bool:
    return (
        np.array_equal(one.x_ND, other.x_ND)
        and np.array_equal(one.y_N, other.y_N)
        and all(
            np.array_equal(one.parts[part].order, other.parts[part].order)
            and np.array_equal(one.parts[part].offsets, other.parts[part].offsets)
            for part in one.parts
        )
    )


def digits() -> Dataset:
    dataset = read_source(DIGITS, np.random.default_rng(0))
    assert isinstance(dataset, Dataset)
    return dataset


def owned(federation: FederatedData, client: int) -> set[int]:
    return {row for rows in federation.parts.values() for row in rows.of(client).tolist()}


@pytest.mark.parametrize("partition", PARTITIONS)
def test_digits_by_every_partition(partition: Any) -> None:
    federation = load(DIGITS, partition, 0)
    assert federation.num_clients == 12
    assert federation.client_name(3) == "client 3"
    orders = [rows.order for rows in federation.parts.values()]
    np.testing.assert_array_equal(np.sort(np.concatenate(orders)), np.arange(1797))
    assert all(rows.counts_K.min() >= 1 for rows in federation.parts.values())
    counts = class_counts(federation)
    assert counts.shape == (12, 10)
    assert counts.sum() == 1797
    assert counts.sum(axis=1).min() >= 5
    assert same(federation, load(DIGITS, partition, 0))
    other = load(DIGITS, partition, 1)
    assert owned(federation, 2) != owned(other, 2)
    has_groups = partition.name in ("rotation", "label_permutation")
    assert (federation.group_K is not None) == has_groups


def test_every_partition_has_a_name_in_the_table() -> None:
    assert sorted(PARTITIONERS) == sorted([*(p.name for p in PARTITIONS), "natural"])


def test_natural_clients_keep_their_names_and_truth() -> None:
    federation = load(LINEAR, NaturalConfig(name="natural", min_samples=1), 0)
    assert federation.num_clients == 7
    for client in range(7):
        x_nD, y_n1 = federation.client(client, "train")
        assert len(x_nD) == 7  # of ten: one for validation, two for testing
        error = y_n1[:, 0] - x_nD @ federation.truth["theta_KD"][client]
        assert np.abs(error).max() < 0.5
    np.testing.assert_array_equal(class_counts(federation), np.full((7, 1), 10))


def test_groups_see_their_own_rotation_in_every_part() -> None:
    plain = digits()
    federation = load(DIGITS, PARTITIONS[4], 0)
    for part, rows in federation.parts.items():
        for client in range(12):
            row = rows.of(client)[0]
            expected = np.rot90(plain.x_ND[row].reshape(8, 8), client % 4)
            seen = federation.client(client, part)[0][0]
            np.testing.assert_array_equal(seen.reshape(8, 8), expected)


def test_labels_are_renamed_in_all_groups_but_the_first() -> None:
    plain = digits()
    federation = load(DIGITS, PARTITIONS[5], 0)
    rows = federation.parts["train"]
    for client in range(12):
        renamed = federation.y_N[rows.of(client)] != plain.y_N[rows.of(client)]
        assert renamed.all() == (client % 3 != 0)
        assert renamed.any() == (client % 3 != 0)


def test_the_seed_decides_on_the_permutations() -> None:
    plain = digits()

    def names(seed: int) -> dict[int, int]:
        federation = load(DIGITS, PARTITIONS[5], seed)
        rows = federation.parts["train"].of(1)
        return dict(zip(plain.y_N[rows].tolist(), federation.y_N[rows].tolist(), strict=True))

    assert names(0) == names(0)
    assert names(0) != names(1)


def test_the_seed_draws_the_data() -> None:
    natural = NaturalConfig(name="natural", min_samples=1)
    pools = [load(LINEAR, natural, seed).x_ND for seed in (0, 1)]
    assert not np.array_equal(pools[0], pools[1])


def test_the_seed_splits_even_where_it_does_not_partition() -> None:
    natural = NaturalConfig(name="natural", min_samples=1)
    held = [load(LINEAR, natural, seed).parts["test"].order for seed in (0, 1)]
    assert held[0].tolist() != held[1].tolist()


def test_class_counts_by_hand() -> None:
    federation = FederatedData(
        name="toy",
        origin="synthetic",
        task=Task(kind="classification", num_features=1, num_outputs=3),
        x_ND=np.zeros((6, 1), dtype=np.float32),
        y_N=np.array([0, 1, 1, 2, 0, 0]),
        parts={
            "train": Rows.pack([np.array([0, 1]), np.array([2])]),
            "validation": Rows.pack([np.array([4]), np.array([], dtype=np.int64)]),
            "test": Rows.pack([np.array([], dtype=np.int64), np.array([3, 5])]),
        },
        client_names=("a", "b"),
    )
    counts = class_counts(federation)
    assert counts.tolist() == [[2, 1, 0], [1, 1, 1]]
    assert counts.dtype == np.int64


def test_standardised_uses_training_rows_only_and_leaves_constants() -> None:
    x_ND = np.array([[1, 0.1, 5], [3, 0.1, 5], [100, 0.1, 7]], dtype=np.float32)
    scaled = standardised(x_ND, np.array([0, 1]))
    expected = [[-1, 0, 0], [1, 0, 0], [98, 0, 2]]
    np.testing.assert_allclose(scaled, expected, atol=1e-6)
    assert scaled.dtype == np.float32


def test_a_constant_that_is_no_binary_fraction_is_not_blown_up() -> None:
    x_ND = np.full((1001, 1), 0.1, dtype=np.float32)
    x_ND[-1] = 0.2
    scaled = standardised(x_ND, np.arange(1000))
    np.testing.assert_allclose(scaled[:-1], 0.0, atol=1e-6)
    np.testing.assert_allclose(scaled[-1], 0.1, atol=1e-6)


def test_images_are_not_standardised() -> None:
    federation = load(DIGITS, PARTITIONS[0], 0)
    assert (federation.x_ND.min(), federation.x_ND.max()) == (0.0, 1.0)


def test_what_cannot_be_partitioned_is_refused() -> None:
    with pytest.raises(DataError, match="dirichlet: needs class labels, synthetic_linear is a"):
        load(LINEAR, PARTITIONS[1], 0)


def test_importing_the_room_is_cheap() -> None:
    heavy = ["torch", "flwr", "hydra", "sklearn", "scipy", "pandas", "pyarrow", "matplotlib"]
    command = f"import sys, fedmoe.data; print(sorted(set({heavy}) & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
