"""Clients made on demand: the same ones whoever asks, cut as all others are, errors by name."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.data import LazyDataset, LazyFederation, Task, class_counts
from fedmoe.data.lazy import Built, shuffled
from fedmoe.data.split import part_sizes
from fedmoe.errors import DataError

TASK = Task(kind="classification", num_features=2, num_outputs=3)


def build(client: int) -> tuple[Any, Any]:
    """Client k has k % 5 + 4 samples, and its i-th one is (k, i) of class i % 3."""
    count = client % 5 + 4
    return [[client, i] for i in range(count)], [i % 3 for i in range(count)]


def federation(**changes: Any) -> LazyFederation:
    values = {"name": "toy", "origin": "synthetic", "task": TASK, "num_clients": 1000}
    dataset = LazyDataset(**{**values, "build": build, **changes})
    return LazyFederation(
        dataset=dataset, min_samples=1, validation_fraction=0.1, test_fraction=0.3, seed=5
    )


def parts_of(lazy: LazyFederation, clients: list[int]) -> dict[tuple[int, str], list[list[float]]]:
    made = lazy.only(np.array(clients))
    return {
        (client, part): made.client(place, part)[0].tolist()
        for place, client in enumerate(clients)
        for part in made.parts
    }


@settings(deadline=None)
@given(clients=st.lists(st.integers(0, 999), min_size=1, max_size=12, unique=True))
def test_a_client_is_the_same_whoever_else_is_made(clients: list[int]) -> None:
    together = parts_of(federation(), clients)
    for client in clients:
        for (_, part), rows in parts_of(federation(), [client]).items():
            assert together[client, part] == rows


def test_only_those_who_are_asked_for_are_made_and_the_last_ones_are_kept() -> None:
    calls: list[int] = []

    def counted(client: int) -> tuple[Any, Any]:
        calls.append(client)
        return build(client)

    lazy = federation(build=counted)
    first = lazy.only(np.array([7, 3]))
    assert lazy.only(np.array([7, 3])) is first
    assert calls == [7, 3]
    lazy.only(np.array([3, 7]))
    lazy.only(np.array([7, 3]))
    assert calls == [7, 3, 3, 7, 7, 3]


def test_each_client_is_cut_by_the_rule_of_all_others() -> None:
    clients = np.array([8, 0, 996])
    made = federation().only(clients)
    counts = np.array([len(build(client)[0]) for client in clients.tolist()])
    validation_C, test_C = part_sizes(counts, 0.1, 0.3)
    assert made.parts["validation"].counts_K.tolist() == validation_C.tolist()
    assert made.parts["test"].counts_K.tolist() == test_C.tolist()
    for place, client in enumerate(clients.tolist()):
        rows = np.concatenate([made.parts[part].of(place) for part in made.parts])
        samples = sorted(zip(made.x_ND[rows].tolist(), made.y_N[rows].tolist(), strict=True))
        x, y = build(client)
        assert samples == list(zip(x, y, strict=True))
    assert class_counts(made).sum(axis=1).tolist() == counts.tolist()
    assert [made.client_name(place) for place in range(3)] == ["client 8", "client 0", "client 996"]


def test_every_position_is_equally_likely_to_be_held_out() -> None:
    lazy = replace(federation(), validation_fraction=0.0)
    made = lazy.only(np.arange(4, 1000, 5))  # eight samples each, two of them for testing
    test = made.x_ND[made.parts["test"].order, 1].astype(np.int64)
    frequency = np.bincount(test, minlength=8) / 200
    np.testing.assert_allclose(frequency, 2 / 8, atol=0.12)


def test_the_order_depends_on_the_seed_and_the_client() -> None:
    count, client = np.array([50]), np.array([3])
    orders = [
        shuffled(count, client + c, seed).order.tolist() for seed, c in ((0, 0), (1, 0), (0, 1))
    ]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_many_at_once_are_asked_of_who_can_make_them() -> None:
    def build_many(clients: np.ndarray[Any, Any]) -> Built:
        samples = [build(client) for client in clients.tolist()]
        return Built(
            np.concatenate([np.array(x, dtype=np.float32) for x, _ in samples]),
            np.concatenate([y for _, y in samples]),
            np.array([len(y) for _, y in samples]),
        )

    def never(client: int) -> tuple[Any, Any]:
        raise AssertionError

    many = federation(build=never, build_many=build_many)
    assert parts_of(many, [4, 2, 900]) == parts_of(federation(), [4, 2, 900])


def test_what_it_tells_without_making_anybody() -> None:
    def never(client: int) -> tuple[Any, Any]:
        raise AssertionError

    lazy = federation(build=never, num_clients=10**9)
    assert (lazy.name, lazy.origin, lazy.task) == ("toy", "synthetic", TASK)
    assert (lazy.num_clients, lazy.num_samples) == (10**9, None)
    assert lazy.client_name(10**8) == "client 100000000"


def test_one_client_has_its_data_without_the_others() -> None:
    x_nD, y_n = federation().client(6, "train")
    assert x_nD[:, 0].tolist() == [6.0, 6.0]
    assert y_n.tolist() == [i % 3 for i in x_nD[:, 1].astype(int)]


# ------------------------------------------------------------------------ failures


def failing(client: int) -> tuple[Any, Any]:
    raise FileNotFoundError("no sensor-3.csv")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (failing, "toy: client 3: FileNotFoundError: no sensor-3.csv"),
        (lambda client: [[1.0, 2.0]], "toy: client 3: ValueError: not enough values to unpack"),
        (lambda client: ([[1.0]], [0]), r"toy: client 3: x has shape \(1, 1\), expected"),
        (lambda client: ([[1.0, 2.0]], [3]), "toy: client 3: y has class 3, classes are 0 to 2"),
    ],
)
def test_a_client_that_cannot_be_made_is_named(build: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        federation(build=build).only(np.array([3]))


def test_a_failure_leaves_the_others_as_they_were() -> None:
    def sometimes(client: int) -> tuple[Any, Any]:
        return build(client) if client != 3 else failing(client)

    lazy = federation(build=sometimes)
    with pytest.raises(DataError, match="client 3"):
        lazy.only(np.array([2, 3, 4]))
    assert parts_of(lazy, [2, 4]) == parts_of(federation(), [2, 4])


def test_who_has_too_few_samples_is_named() -> None:
    lazy = replace(federation(), min_samples=5)
    with pytest.raises(DataError, match=r"toy: client 10 has 4 samples, partition.min_samples is"):
        lazy.only(np.array([1, 10, 2]))


@pytest.mark.parametrize("client", [-1, 1000])
def test_who_is_not_there_is_not_made(client: int) -> None:
    with pytest.raises(DataError, match=f"toy: no client {client}, there are 1000"):
        federation().only(np.array([0, client]))


def test_a_client_may_be_empty_where_that_is_allowed() -> None:
    def rows(client: int) -> Iterator[Any]:
        yield np.zeros((client % 2, 2))
        yield np.zeros(client % 2, dtype=np.int64)

    lazy = replace(federation(build=lambda c: tuple(rows(c))), min_samples=0)
    made = lazy.only(np.array([0, 1, 2]))
    assert made.parts["train"].counts_K.tolist() == [0, 1, 0]
