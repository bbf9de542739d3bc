import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.data.federation import Ints
from fedmoe.training.batches import Schedule, hash_keys, make_schedule, steps_per_epoch

MASK = 2**64 - 1


def naive_hash(*words: int) -> int:
    state = golden = 0x9E3779B97F4A7C15
    for word in words:
        z = ((word ^ state) + golden) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        state = z ^ (z >> 31)
    return state


@given(words=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5))
def test_hash_keys_are_rounds_of_splitmix64(words: list[int]) -> None:
    assert int(hash_keys(*words)) == naive_hash(*words)


def test_hash_keys_broadcast() -> None:
    first, second = np.arange(3)[:, None], np.arange(4)
    keys = hash_keys(5, first, second)
    assert keys.shape == (3, 4)
    for i, j in itertools.product(range(3), range(4)):
        assert int(keys[i, j]) == naive_hash(5, i, j)


def test_hash_keys_are_distinct_and_uniform() -> None:
    keys = hash_keys(1, np.arange(64)[:, None, None], np.arange(16)[:, None], np.arange(128))
    flat = keys.ravel()
    assert len(np.unique(flat)) == flat.size == 131_072
    bits = (flat[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(flat.size)
    in_bins = np.bincount((flat >> np.uint64(56)).astype(np.int64), minlength=256)
    chi_square = ((in_bins - flat.size / 256) ** 2 / (flat.size / 256)).sum()
    assert abs(chi_square - 255) < 4.5 * np.sqrt(2 * 255)
    unit = keys / 2.0**64
    for axis in range(3):  # neighbours in client, epoch and position are uncorrelated
        one = np.moveaxis(unit, axis, 0)
        assert abs(np.corrcoef(one[:-1].ravel(), one[1:].ravel())[0, 1]) < 0.015


@pytest.mark.parametrize("word", range(4))
def test_one_bit_of_any_word_turns_half_of_the_keys_bits(word: int) -> None:
    base = [3, 1, 41, 59]
    turned = []
    for bit in range(20):
        other = base.copy()
        other[word] ^= 1 << bit
        turned.append(bin(int(hash_keys(*base)) ^ int(hash_keys(*other))).count("1"))
    assert 28 < np.mean(turned) < 36


def schedule_of(
    counts: list[int],
    epochs: list[int],
    *,
    clients: list[int] | None = None,
    batch_size: int = 8,
    seed: int = 0,
    round: int = 1,
    extra: int = 0,
) -> tuple[Schedule, list[list[int]]]:
    """A schedule, and each client's rows: 1000 c + 7 i + 3 for its i-th sample."""
    ids = np.array(range(len(counts)) if clients is None else clients, dtype=np.int64)
    own = [[1000 * int(c) + 7 * i + 3 for i in range(n)] for c, n in zip(ids, counts, strict=True)]
    rows_Cn = np.zeros((len(counts), max(counts, default=0) + extra), dtype=np.int64)
    for row, values in zip(rows_Cn, own, strict=True):
        row[: len(values)] = values
    schedule = make_schedule(
        rows_Cn=rows_Cn,
        count_C=np.array(counts, dtype=np.int64),
        client_C=ids,
        epochs_C=np.array(epochs, dtype=np.int64),
        batch_size=batch_size,
        seed=seed,
        round=round,
    )
    return schedule, own


def batches_of(schedule: Schedule, client: int) -> list[list[int]]:
    """The real rows of each of a client's steps."""
    steps = int((schedule.active_S > client).sum())
    batches = []
    for step in range(steps):
        size = schedule.samples_SC[step, client]
        batches.append(schedule.rows_SCB[step, client, :size].tolist())
    return batches


def fall(counts: list[int], epochs: list[int], batch_size: int) -> list[int]:
    steps = [-(-n // batch_size) * e for n, e in zip(counts, epochs, strict=True)]
    return sorted(range(len(counts)), key=lambda c: -steps[c])


cohorts = st.lists(st.tuples(st.integers(0, 70), st.integers(0, 4)), min_size=0, max_size=6)


@settings(deadline=None, max_examples=60)
@given(
    cohort=cohorts,
    batch_size=st.integers(1, 80),
    seed=st.integers(0, 2**31 - 1),
    round=st.integers(0, 500),
    extra=st.integers(0, 90),
)
def test_every_sample_is_seen_once_per_epoch_in_batches_of_the_asked_size(
    cohort: list[tuple[int, int]], batch_size: int, seed: int, round: int, extra: int
) -> None:
    counts, epochs = [n for n, _ in cohort], [e for _, e in cohort]
    order = fall(counts, epochs, batch_size)
    counts, epochs = [counts[c] for c in order], [epochs[c] for c in order]
    common = {"batch_size": batch_size, "seed": seed, "round": round}
    schedule, own = schedule_of(counts, epochs, clients=order, extra=extra, **common)
    steps = [-(-n // batch_size) for n in counts]
    assert steps == steps_per_epoch(np.array(counts, dtype=np.int64), batch_size).tolist()
    totals = [s * e for s, e in zip(steps, epochs, strict=True)]
    length = max(totals, default=0)
    assert schedule.active_S.tolist() == [sum(t > s for t in totals) for s in range(length)]
    assert schedule.epoch_SC.shape == schedule.rows_SCB.shape[:2] == (length, len(cohort))
    weight_SCB = schedule.weight_SCB()
    assert schedule.rows_SCB.shape == weight_SCB.shape
    assert schedule.rows_SCB.dtype == np.int64
    for c, count in enumerate(counts):
        if count:  # padding is one's own as well
            assert set(schedule.rows_SCB[:, c].ravel().tolist()) <= set(own[c])
        batches = batches_of(schedule, c)
        assert len(batches) == totals[c]
        for epoch in range(epochs[c]):
            part = batches[epoch * steps[c] : (epoch + 1) * steps[c]]
            sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
            assert [len(batch) for batch in part] == sizes
            assert sorted(itertools.chain(*part)) == own[c]
        for step in range(length):
            weight = weight_SCB[step, c]
            if step < totals[c]:
                assert schedule.epoch_SC[step, c] == step // steps[c]
                real = len(batches[step])
                expected = [1 / real] * real + [0.0] * (len(weight) - real)
                np.testing.assert_allclose(weight, expected)
            else:
                assert not weight.any()
        alone, _ = schedule_of([count], [epochs[c]], clients=[order[c]], **common)
        assert batches_of(alone, 0) == batches


def test_orders_differ_between_epochs_rounds_clients_and_seeds_and_repeat() -> None:
    def order(**changed: int) -> list[int]:
        client = changed.pop("client", 3)
        schedule, own = schedule_of([40], [1], clients=[client], **changed)
        return [own[0].index(row) for batch in batches_of(schedule, 0) for row in batch]

    base = order()
    assert base == order(seed=0, round=1, client=3)
    two_epochs, own = schedule_of([40], [2], clients=[3])
    seen = [own[0].index(row) for batch in batches_of(two_epochs, 0) for row in batch]
    assert seen[:40] == base
    orders = [
        base, seen[40:], order(seed=1), order(round=2), order(client=4), list(range(40)),
    ]  # fmt: skip
    for one, other in itertools.combinations(orders, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 10
    # A round of one client is not another round of its neighbour, nor one seed another's round.
    assert order(round=2, client=3) != order(round=3, client=2)
    assert order(seed=1, round=2) != order(seed=2, round=1)


def test_batch_size_leaves_the_order_alone() -> None:
    def order(batch_size: int) -> list[int]:
        schedule, _ = schedule_of([30], [2], batch_size=batch_size)
        return list(itertools.chain(*batches_of(schedule, 0)))

    assert order(4) == order(7) == order(30) == order(64)


def test_every_permutation_is_as_likely() -> None:
    seen: dict[tuple[int, ...], int] = {}
    for seed in range(1200):
        schedule, _ = schedule_of([3], [1], seed=seed)
        order = tuple(batches_of(schedule, 0)[0])
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 6
    assert all(abs(times - 200) < 4.5 * np.sqrt(200 * 5 / 6) for times in seen.values())


def test_clients_that_are_not_ordered_by_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="ordered by falling number of steps"):
        schedule_of([3, 9], [1, 1])
    with pytest.raises(ValueError, match="ordered by falling number of steps"):
        schedule_of([9, 9], [1, 2])
    schedule_of([9, 16], [1, 1])  # two steps each


def test_no_steps_are_no_error() -> None:
    counts: Ints
    for counts, epochs in [([], []), ([0, 0], [3, 1]), ([5, 5], [0, 0])]:  # type: ignore[assignment]
        schedule, _ = schedule_of(list(counts), epochs)
        assert len(schedule.active_S) == len(schedule.rows_SCB) == 0
