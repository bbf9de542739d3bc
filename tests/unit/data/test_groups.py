from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import rotate

from fedmoe.data.federation import Dataset, Ints, Task
from fedmoe.data.groups import label_permutations, rotate_images, transform
from fedmoe.errors import DataError
from fedmoe.schema import IidConfig, LabelPermutationConfig, RotationConfig


def pictures(height: int = 3, width: int = 3, count: int = 12) -> Dataset:
    rng = np.random.default_rng(5)
    return Dataset(
        name="pictures",
        origin="synthetic",
        task=Task(kind="classification", num_features=height * width, num_outputs=4),
        x_ND=rng.random((count, height * width), dtype=np.float32),
        y_N=np.arange(count) % 4,
        image_shape=(height, width),
    )


def shares(count: int, clients: int) -> list[Ints]:
    return np.array_split(np.arange(count), clients)


def test_other_partitions_change_nothing() -> None:
    dataset = pictures()
    config = IidConfig(name="iid", num_clients=3, min_samples=0)
    seen, group_K = transform(dataset, shares(12, 3), config, np.random.default_rng(0))
    assert seen is dataset
    assert group_K is None


def test_quarter_turns_are_exact_and_go_to_their_group_only() -> None:
    dataset = pictures()
    before = dataset.x_ND.copy()
    rows = shares(12, 6)
    config = RotationConfig(name="rotation", num_clients=6, num_groups=4, min_samples=0)
    seen, group_K = transform(dataset, rows, config, np.random.default_rng(0))
    assert group_K is not None
    assert group_K.tolist() == [0, 1, 2, 3, 0, 1]
    for client, own in enumerate(rows):
        for row in own:
            expected = np.rot90(before[row].reshape(3, 3), client % 4)
            np.testing.assert_array_equal(seen.x_ND[row].reshape(3, 3), expected)
    np.testing.assert_array_equal(dataset.x_ND, before)
    np.testing.assert_array_equal(seen.y_N, dataset.y_N)


def test_interpolated_turns_go_the_same_way_round_as_quarter_turns() -> None:
    image = np.zeros((1, 9, 9), dtype=np.float32)
    image[0, 4, 8] = 1.0  # at three o'clock
    eighth = rotate_images(image, 1, 8)[0]
    row, column = np.unravel_index(eighth.argmax(), eighth.shape)
    assert row < 4 < column  # at half past one
    quarter = rotate_images(image, 2, 8)[0]
    assert quarter[0, 4] == 1.0  # at twelve


def test_other_angles_are_scipys() -> None:
    images = np.random.default_rng(1).random((2, 4, 6), dtype=np.float32)
    turned = rotate_images(images, 1, 3)
    assert turned.dtype == np.float32
    for image, got in zip(images, turned, strict=True):
        expected = rotate(image, 120.0, reshape=False, order=1)
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("steps", [3, 4])
def test_a_group_without_samples_is_no_trouble(steps: int) -> None:
    assert rotate_images(np.zeros((0, 8, 8), dtype=np.float32), 1, steps).shape == (0, 8, 8)


def test_half_a_turn_of_an_oblong_image_is_possible() -> None:
    images = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    assert rotate_images(images, 1, 2)[0].tolist() == [[5, 4, 3], [2, 1, 0]]


def test_a_quarter_turn_of_an_oblong_image_is_refused() -> None:
    config = RotationConfig(name="rotation", num_clients=4, num_groups=4, min_samples=0)
    with pytest.raises(DataError, match="2 x 3 pixels cannot be turned by 90 degrees"):
        transform(pictures(2, 3), shares(12, 4), config, np.random.default_rng(0))


@given(classes=st.integers(1, 8), data=st.data(), seed=st.integers(0, 2**31 - 1))
def test_permutations_are_distinct_and_start_with_the_identity(
    classes: int, data: Any, seed: int
) -> None:
    most = {1: 1, 2: 2, 3: 6}.get(classes, 24)
    groups = data.draw(st.integers(1, most))
    drawn = label_permutations(groups, classes, np.random.default_rng(seed))
    assert drawn.shape == (groups, classes)
    assert drawn[0].tolist() == list(range(classes))
    assert (np.sort(drawn, axis=1) == np.arange(classes)).all()
    assert len(np.unique(drawn, axis=0)) == groups
    cyclic = drawn[:classes]
    for label in range(classes):  # any two of the first C disagree about every class
        assert len(set(cyclic[:, label].tolist())) == len(cyclic)


def test_permutations_follow_the_seed_and_are_not_only_shifts() -> None:
    one, other = (label_permutations(4, 10, np.random.default_rng(seed)) for seed in (0, 1))
    assert one.tolist() != other.tolist()
    shifts = (one[1] - np.arange(10)) % 10
    assert len(set(shifts.tolist())) > 1


def test_more_groups_than_permutations_are_refused() -> None:
    with pytest.raises(DataError, match="7 groups, but 3 classes have only 6 permutations"):
        label_permutations(7, 3, np.random.default_rng(0))


def test_labels_are_renamed_group_by_group() -> None:
    dataset = pictures()
    rows = shares(12, 4)
    config = LabelPermutationConfig(
        name="label_permutation", num_clients=4, num_groups=3, min_samples=0
    )
    seen, group_K = transform(dataset, rows, config, np.random.default_rng(3))
    names_GC = label_permutations(3, 4, np.random.default_rng(3))
    assert group_K is not None
    assert group_K.tolist() == [0, 1, 2, 0]
    for client, own in enumerate(rows):
        for row in own:
            assert seen.y_N[row] == names_GC[client % 3, int(dataset.y_N[row])]
    assert seen.y_N.dtype == np.int64
    assert dataset.y_N.tolist() == (np.arange(12) % 4).tolist()
    assert (seen.y_N[rows[1]] != dataset.y_N[rows[1]]).all()
