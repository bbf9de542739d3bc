import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.data.federation import Rows
from fedmoe.data.split import part_sizes, split


def sizes_of(count: int, validation: float, test: float) -> tuple[int, int, int]:
    validation_K, test_K = part_sizes(np.array([count]), validation, test)
    kept = count - int(validation_K[0]) - int(test_K[0])
    return kept, int(validation_K[0]), int(test_K[0])


@pytest.mark.parametrize(
    ("count", "validation", "test", "expected"),
    [
        (0, 0.1, 0.2, (0, 0, 0)),
        (1, 0.1, 0.2, (1, 0, 0)),
        (2, 0.1, 0.2, (1, 0, 1)),
        (2, 0.1, 0.0, (1, 1, 0)),
        (2, 0.0, 0.0, (2, 0, 0)),
        (3, 0.1, 0.2, (1, 1, 1)),
        (4, 0.1, 0.2, (2, 1, 1)),
        (100, 0.1, 0.2, (70, 10, 20)),
        (100, 0.0, 0.25, (75, 0, 25)),
        (100, 0.004, 0.25, (74, 1, 25)),
        (10, 0.0, 0.99, (1, 0, 9)),
        (3, 0.05, 0.9, (1, 1, 1)),
        (4, 0.49, 0.5, (1, 2, 1)),
    ],
)
def test_part_sizes(
    count: int, validation: float, test: float, expected: tuple[int, int, int]
) -> None:
    assert sizes_of(count, validation, test) == expected


fractions = st.tuples(
    st.one_of(st.just(0.0), st.floats(0.0, 0.999)), st.one_of(st.just(0.0), st.floats(0.0, 0.999))
).filter(lambda pair: sum(pair) < 1.0)


@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    pair=fractions,
    seed=st.integers(0, 2**31 - 1),
)
def test_parts_are_disjoint_complete_and_never_empty_without_need(
    sizes: list[int], pair: tuple[float, float], seed: int
) -> None:
    validation, test = pair
    shuffled = np.random.default_rng(seed).permutation(sum(sizes))
    rows = np.split(shuffled, np.cumsum(sizes)[:-1])
    parts = split(rows, validation, test, np.random.default_rng(seed))
    assert list(parts) == ["train", "validation", "test"]
    for client, own in enumerate(rows):
        pieces = {part: packed.of(client) for part, packed in parts.items()}
        assert sorted(np.concatenate(list(pieces.values()))) == sorted(own)
        count = len(own)
        assert len(pieces["train"]) >= min(count, 1)
        for part, fraction in (("validation", validation), ("test", test)):
            held = len(pieces[part])  # type: ignore[index]
            if fraction == 0.0:
                assert held == 0
            elif count >= 3:
                assert 1 <= held <= max(1, round(fraction * count))
        if count >= 3 and validation and test and len(pieces["train"]) > 1:
            assert len(pieces["validation"]) == max(1, round(validation * count))
            assert len(pieces["test"]) == max(1, round(test * count))


def test_the_seed_decides_who_is_held_out() -> None:
    rows = np.array_split(np.arange(200), 4)
    held = [
        split(rows, 0.1, 0.2, np.random.default_rng(seed))["test"].order.tolist()
        for seed in (1, 1, 2)
    ]
    assert held[0] == held[1]
    assert held[0] != held[2]


def test_every_position_is_equally_likely_to_be_held_out() -> None:
    rows = [np.arange(client * 10, client * 10 + 10) for client in range(2000)]
    test = split(rows, 0.0, 0.3, np.random.default_rng(0))["test"]
    frequency = np.bincount(test.order % 10, minlength=10) / 2000
    np.testing.assert_allclose(frequency, 0.3, atol=0.05)


def test_ten_thousand_clients_are_split_alike() -> None:
    rows = np.array_split(np.arange(200_000), 10_000)
    parts = split(rows, 0.1, 0.2, np.random.default_rng(0))
    assert isinstance(parts["train"], Rows)
    assert parts["train"].counts_K.tolist() == [14] * 10_000
