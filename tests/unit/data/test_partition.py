from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.data.federation import Dataset, Ints, Task
from fedmoe.data.partition import PARTITIONERS, top_up
from fedmoe.errors import DataError
from fedmoe.schema import (
    DirichletConfig,
    IidConfig,
    LabelPermutationConfig,
    NaturalConfig,
    QuantityConfig,
    RotationConfig,
    ShardsConfig,
)


def labelled(labels: Ints, num_classes: int) -> Dataset:
    """Images of 2 x 2 with given labels; what they show does not matter here."""
    return Dataset(
        name="toy",
        origin="synthetic",
        task=Task(kind="classification", num_features=4, num_outputs=num_classes),
        x_ND=np.zeros((len(labels), 4), dtype=np.float32),
        y_N=labels.astype(np.int64),
        image_shape=(2, 2),
    )


def balanced(per_class: int, num_classes: int = 10) -> Dataset:
    return labelled(np.repeat(np.arange(num_classes), per_class), num_classes)


def numeric(num_samples: int) -> Dataset:
    return Dataset(
        name="toy",
        origin="synthetic",
        task=Task(kind="regression", num_features=1, num_outputs=1),
        x_ND=np.zeros((num_samples, 1), dtype=np.float32),
        y_N=np.zeros((num_samples, 1), dtype=np.float32),
    )


def divide(dataset: Dataset, config: Any, seed: int = 0) -> list[Ints]:
    return PARTITIONERS[config.name](dataset, config, np.random.default_rng(seed))


def label_counts(dataset: Dataset, rows: list[Ints]) -> Ints:
    classes = dataset.task.num_outputs
    return np.array(
        [np.bincount(dataset.y_N[own].astype(np.int64), minlength=classes) for own in rows]
    )


def assert_each_sample_once(rows: list[Ints], num_samples: int) -> None:
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(num_samples))


def configs(clients: int, minimum: int, alpha: float, small: int) -> list[Any]:
    common = {"num_clients": clients, "min_samples": minimum}
    groups = min(small, clients)
    return [
        IidConfig(name="iid", **common),
        DirichletConfig(name="dirichlet", alpha=alpha, **common),
        ShardsConfig(name="shards", shards_per_client=small, **common),
        QuantityConfig(name="quantity", alpha=alpha, **common),
        RotationConfig(name="rotation", num_groups=groups, **common),
        LabelPermutationConfig(name="label_permutation", num_groups=groups, **common),
    ]


@settings(max_examples=300)
@given(
    num_samples=st.integers(1, 150),
    num_classes=st.integers(1, 6),
    clients=st.integers(1, 40),
    minimum=st.one_of(st.integers(0, 6), st.none()),
    alpha=st.one_of(st.sampled_from([1e-3, 1e6]), st.floats(1e-3, 1e6)),
    small=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_partition_covers_once_and_keeps_the_minimum_or_is_refused(
    num_samples: int,
    num_classes: int,
    clients: int,
    minimum: int | None,
    alpha: float,
    small: int,
    seed: int,
) -> None:
    labels = np.random.default_rng(seed).integers(num_classes, size=num_samples)
    dataset = labelled(labels, num_classes)
    if minimum is None:  # the largest that is possible
        minimum = num_samples // clients
    for config in configs(clients, minimum, alpha, small):
        impossible = clients * minimum > num_samples
        if config.name == "shards":
            impossible |= clients * small > num_samples
        if impossible:
            with pytest.raises(DataError, match=f"{config.name}: {clients} clients"):
                divide(dataset, config, seed)
            continue
        rows = divide(dataset, config, seed)
        assert len(rows) == clients
        assert all(own.dtype == np.int64 for own in rows)
        assert_each_sample_once(rows, num_samples)
        assert min(len(own) for own in rows) >= minimum
        again = divide(dataset, config, seed)
        assert [own.tolist() for own in rows] == [own.tolist() for own in again]


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=20),
    minimum=st.integers(0, 10),
    seed=st.integers(0, 1000),
)
def test_top_up_moves_no_more_than_it_must(sizes: list[int], minimum: int, seed: int) -> None:
    minimum = min(minimum, sum(sizes) // len(sizes))
    before = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    after = top_up(before, minimum, np.random.default_rng(seed))
    assert_each_sample_once(after, sum(sizes))
    new_sizes = [len(own) for own in after]
    givers = [new for new, old in zip(new_sizes, sizes, strict=True) if new < old]
    for old_rows, new_rows in zip(before, after, strict=True):
        if len(old_rows) < minimum:  # poor: keeps its own, and ends exactly at the minimum
            assert len(new_rows) == minimum
            assert set(old_rows) <= set(new_rows)
        elif len(new_rows) == len(old_rows):
            np.testing.assert_array_equal(new_rows, old_rows)
        else:  # rich: gives, and is levelled with the other givers
            assert set(new_rows) < set(old_rows)
            assert len(new_rows) - min(givers) <= 1
    if givers:
        assert max(new_sizes) - min(givers) <= 1


def test_top_up_takes_from_the_richest_one_at_a_time() -> None:
    rows = np.split(np.arange(20), [10, 17, 18])  # sizes 10, 7, 1, 2
    sizes = [len(own) for own in top_up(rows, 4, np.random.default_rng(0))]
    assert sizes == [6, 6, 4, 4]  # 10, 9, 8, then in turn with the 7: five moves


@pytest.mark.parametrize("config", configs(clients=10, minimum=0, alpha=0.5, small=2))
def test_another_seed_gives_another_partition(config: Any) -> None:
    dataset = balanced(30)
    one, other = divide(dataset, config, 1), divide(dataset, config, 2)
    assert [sorted(own) for own in one] != [sorted(own) for own in other]


@pytest.mark.parametrize("config", configs(clients=10, minimum=9, alpha=0.1, small=2))
def test_numpys_global_state_is_left_alone(config: Any) -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    divide(balanced(10), config)
    after = np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    assert before == after


def test_iid_sizes_differ_by_one_at_most() -> None:
    rows = divide(balanced(10, 10), IidConfig(name="iid", num_clients=7, min_samples=14))
    assert sorted(len(own) for own in rows) == [14, 14, 14, 14, 14, 15, 15]


def test_dirichlet_is_skewed_for_small_alpha_and_nearly_iid_for_large() -> None:
    def spread(alpha: float) -> float:
        """Mean total variation distance between a client's labels and the pool's."""
        config = DirichletConfig(name="dirichlet", num_clients=20, alpha=alpha, min_samples=1)
        counts = label_counts(dataset, divide(dataset, config))
        shares = counts / counts.sum(axis=1, keepdims=True)
        return float(0.5 * np.abs(shares - 0.1).sum(axis=1).mean())

    dataset = balanced(200)
    assert spread(0.1) > 0.6
    assert spread(100.0) < 0.1
    assert spread(0.1) > spread(1.0) > spread(10.0) > spread(1000.0)


def test_dirichlet_shares_of_a_class_have_the_variance_of_the_distribution() -> None:
    dataset = balanced(1000, num_classes=400)
    config = DirichletConfig(name="dirichlet", num_clients=5, alpha=0.7, min_samples=0)
    shares = label_counts(dataset, divide(dataset, config)) / 1000
    np.testing.assert_allclose(shares.var(), 0.2 * 0.8 / (5 * 0.7 + 1), rtol=0.1)


def test_dirichlet_of_tiny_alpha_gives_whole_classes_away() -> None:
    dataset = balanced(50)
    config = DirichletConfig(name="dirichlet", num_clients=8, alpha=1e-3, min_samples=0)
    counts = label_counts(dataset, divide(dataset, config))
    assert ((counts == 50).sum(axis=0) == 1).mean() >= 0.9


def test_dirichlet_leaves_to_chance_which_samples_of_a_class_a_client_gets() -> None:
    dataset = balanced(1000, num_classes=2)
    config = DirichletConfig(name="dirichlet", num_clients=4, alpha=1e6, min_samples=0)
    for own in divide(dataset, config):
        positions = own % 1000  # within the class
        np.testing.assert_allclose(positions.mean(), 500, atol=5 * 289 / np.sqrt(len(own)))


def test_shards_give_few_labels_to_each_client_and_equal_sizes() -> None:
    dataset = balanced(60)
    config = ShardsConfig(name="shards", num_clients=20, shards_per_client=2, min_samples=30)
    counts = label_counts(dataset, divide(dataset, config))
    assert (counts.sum(axis=1) == 30).all()
    # Forty shards of fifteen: four per class, so that none straddles two classes.
    assert ((counts > 0).sum(axis=1) <= 2).all()
    assert set(np.unique(counts)) <= {0, 15, 30}


def test_quantity_skews_sizes_but_not_labels() -> None:
    dataset = balanced(1000, num_classes=2)
    config = QuantityConfig(name="quantity", num_clients=10, alpha=0.5, min_samples=20)
    counts = label_counts(dataset, divide(dataset, config))
    sizes = counts.sum(axis=1)
    assert sizes.max() > 4 * sizes.min()
    expected_deviation = np.sqrt(sizes / 4)
    assert (np.abs(counts[:, 0] - sizes / 2) < 4 * expected_deviation).all()


def test_quantity_of_large_alpha_gives_equal_sizes() -> None:
    config = QuantityConfig(name="quantity", num_clients=10, alpha=1e6, min_samples=0)
    sizes = [len(own) for own in divide(numeric(1000), config)]
    assert max(sizes) - min(sizes) <= 3


def test_natural_follows_the_source() -> None:
    dataset = natural_dataset([1, 0, 1, 2, 1])
    rows = divide(dataset, NaturalConfig(name="natural", min_samples=1))
    assert [own.tolist() for own in rows] == [[1], [0, 2, 4], [3]]


def natural_dataset(clients: list[int]) -> Dataset:
    return Dataset(
        name="shops",
        origin="real",
        task=Task(kind="regression", num_features=1, num_outputs=1),
        x_ND=np.zeros((len(clients), 1), dtype=np.float32),
        y_N=np.zeros((len(clients), 1), dtype=np.float32),
        client_N=np.array(clients),
        client_names=("Aarhus", "Bergen", "Cork"),
    )


@pytest.mark.parametrize(
    ("clients", "minimum", "message"),
    [
        ([0, 0, 1, 1, 2], 2, "client 'Cork' of shops has 1 samples, min_samples is 2$"),
        ([0, 1, 1], 1, "client 'Cork' of shops has 0 samples, min_samples is 1$"),
        ([0, 1, 2], 5, r"client 'Aarhus' of shops has 1 samples.*\(2 more are below it\)"),
    ],
)
def test_natural_refuses_poor_clients_by_name(
    clients: list[int], minimum: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        divide(natural_dataset(clients), NaturalConfig(name="natural", min_samples=minimum))


def test_natural_needs_a_source_that_knows_clients() -> None:
    with pytest.raises(DataError, match="natural: toy does not say which client"):
        divide(balanced(3), NaturalConfig(name="natural", min_samples=0))


def test_impossible_requests_are_refused_with_the_numbers() -> None:
    dataset = labelled(np.zeros(1797, dtype=np.int64), 10)
    with pytest.raises(DataError) as refused:
        divide(dataset, IidConfig(name="iid", num_clients=50, min_samples=40))
    assert str(refused.value) == (
        "iid: 50 clients x min_samples 40 = 2000 samples needed, toy has 1797"
    )
    config = ShardsConfig(name="shards", num_clients=1000, shards_per_client=2, min_samples=0)
    with pytest.raises(DataError, match="1000 clients x 2 shards = 2000 shards, toy has only 1797"):
        divide(dataset, config)


@pytest.mark.parametrize("position", [1, 2, 5])
def test_label_skew_needs_labels(position: int) -> None:
    config = configs(clients=2, minimum=0, alpha=1.0, small=2)[position]
    with pytest.raises(DataError, match=f"{config.name}: needs class labels, toy is a regression"):
        divide(numeric(50), config)


def test_rotation_needs_images() -> None:
    config = RotationConfig(name="rotation", num_clients=4, num_groups=2, min_samples=0)
    with pytest.raises(DataError, match="rotation: the samples of toy are not images"):
        divide(numeric(50), config)


@pytest.mark.parametrize(
    "config",
    [
        RotationConfig(name="rotation", num_clients=3, num_groups=4, min_samples=0),
        LabelPermutationConfig(
            name="label_permutation", num_clients=3, num_groups=4, min_samples=0
        ),
    ],
)
def test_more_groups_than_clients_are_refused(config: Any) -> None:
    with pytest.raises(DataError, match="4 groups need at least as many clients, there are 3"):
        divide(balanced(10), config)
