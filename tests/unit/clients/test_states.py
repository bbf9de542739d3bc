"""Clients' private arrays, against a dictionary of clients."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fedmoe.clients.states import ContextStates, StackedStates, States
from fedmoe.messages.arrays import from_record, to_record
from fedmoe.models import Parameters

KEYS = ("model", "optimizer")
SHAPES = {"w": (2, 3), "b": ()}
MOST = 12  # clients
Row = dict[str, NDArray[Any]]
Model = dict[tuple[str, int], Row]  # the oracle: each client's arrays by record


def ints(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def arrays_of(rows: Sequence[Row]) -> Parameters:
    """Client axis first; fresh tensors."""
    return {name: torch.tensor(np.stack([row[name] for row in rows])) for name in SHAPES}


def rows_of(generator: np.random.Generator, count: int) -> list[Row]:
    return [
        {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        for _ in range(count)
    ]


def kinds() -> list[States]:
    return [StackedStates(), ContextStates({client: RecordDict() for client in range(MOST)})]


def assert_reads(
    states: States, model: Model, key: str, clients: Sequence[int], default: Parameters
) -> None:
    found = states.read(key, ints(clients), default)
    known = [model.get((key, client)) for client in clients]
    if all(row is None for row in known):
        assert found is None
        return
    assert found is not None and list(found) == list(SHAPES)
    for place, row in enumerate(known):
        for name in SHAPES:
            like = default[name]
            fallback = like[place if len(like) > 1 else 0].numpy()
            expected = fallback if row is None else row[name]
            np.testing.assert_array_equal(found[name][place].numpy(), expected)
            assert found[name].dtype == torch.float32


def clients_in_some_order() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, MOST - 1), unique=True, min_size=1)


@settings(max_examples=120)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["write", "read", "restore"]),
            st.sampled_from(KEYS),
            clients_in_some_order(),
            st.booleans(),
        ),
        max_size=14,
    ),
    st.integers(0, 99),
)
def test_any_reads_and_writes_are_those_of_a_dictionary(
    steps: list[tuple[str, str, list[int], bool]], seed: int
) -> None:
    """Partial cohorts in any order, new clients at any time, and checkpoints in between."""
    generator = np.random.default_rng(seed)
    stacked, contexts = kinds()
    model: Model = {}
    for kind, key, clients, wide in steps:
        if kind == "write":
            rows = rows_of(generator, len(clients))
            model |= {(key, client): row for client, row in zip(clients, rows, strict=True)}
            stacked.write(key, ints(clients), arrays_of(rows))
            contexts.write(key, ints(clients), arrays_of(rows))
        elif kind == "read":
            default = arrays_of(rows_of(generator, len(clients) if wide else 1))
            assert_reads(stacked, model, key, clients, default)
            assert_reads(contexts, model, key, clients, default)
        else:
            assert isinstance(stacked, StackedStates)
            again = StackedStates()
            again.restore(stacked.state())
            stacked = again
    zeros = arrays_of([{name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}])
    for key in KEYS:
        for states in (stacked, contexts):
            assert_reads(states, model, key, range(MOST), zeros)
            for client in range(MOST):
                assert_reads(states, model, key, [client], zeros)


def table(clients: Sequence[int], value: float = 0.0) -> Parameters:
    """Each client's arrays hold its number, and a value."""
    rows = [{"w": np.full((2, 3), c + value, np.float32), "b": np.float32(c)} for c in clients]
    return arrays_of([{name: np.asarray(array) for name, array in row.items()} for row in rows])


@pytest.fixture(params=[0, 1], ids=["stacked", "contexts"])
def states(request: pytest.FixtureRequest) -> States:
    return kinds()[int(request.param)]


def weights(found: Parameters | None) -> list[float]:
    assert found is not None
    return [float(row[0, 0]) for row in found["w"]]


def test_nothing_is_known_of_clients_that_wrote_nothing(states: States) -> None:
    default = table([0])
    assert states.read("model", ints([1, 2]), default) is None
    states.write("model", ints([3]), table([3]))
    assert states.read("model", ints([1, 2]), default) is None
    assert states.read("optimizer", ints([3]), default) is None
    assert states.read("model", ints([]), default) is None
    assert weights(states.read("model", ints([1, 3, 2]), table([9]))) == [9, 3, 9]
    own = states.read("model", ints([1, 3, 2]), table([7, 8, 9]))
    assert weights(own) == [7, 3, 9]


def test_a_default_takes_the_clients_dtype() -> None:
    stacked = StackedStates()
    stacked.write("model", ints([1]), {"w": torch.ones(1, 2, dtype=torch.float64)})
    found = stacked.read("model", ints([1, 0]), {"w": torch.zeros(1, 2)})
    assert found is not None and found["w"].dtype == torch.float64
    assert found["w"].tolist() == [[1, 1], [0, 0]]


def test_a_whole_cohort_is_neither_copied_in_nor_out() -> None:
    stacked = StackedStates()
    written = table([5, 2, 8])
    stacked.write("model", ints([5, 2, 8]), written)
    found = stacked.read("model", ints([5, 2, 8]), table([0]))
    assert found is not None
    assert {n: t.data_ptr() for n, t in found.items()} == {
        n: t.data_ptr() for n, t in written.items()
    }
    newer = table([5, 2, 8], value=1)
    stacked.write("model", ints([5, 2, 8]), newer)
    found = stacked.read("model", ints([5, 2, 8]), table([0]))
    assert found is not None and found["w"].data_ptr() == newer["w"].data_ptr()


def test_what_was_read_of_some_clients_is_a_copy() -> None:
    stacked = StackedStates()
    stacked.write("model", ints([0, 1, 2]), table([0, 1, 2]))
    found = stacked.read("model", ints([2, 0]), table([0]))
    stacked.write("model", ints([2, 4]), table([2, 4], value=10))
    assert weights(found) == [2, 0]
    assert weights(stacked.read("model", ints([0, 1, 2, 4]), table([0]))) == [0, 1, 12, 14]


def test_memory_grows_with_the_clients_that_were_asked() -> None:
    stacked = StackedStates()
    for first in range(0, 3000, 30):
        clients = list(range(first, first + 30))
        stacked.write("model", ints(clients), table(clients))
        (known,) = stacked._tables.values()
        assert len(known._rows["w"]) <= 2 * (first + 30)
    far = [10**6, 5]
    stacked.write("model", ints(far), table(far))
    assert len(stacked.state()["model/w"]) == 3001
    assert weights(stacked.read("model", ints([2999, 10**6, 17, 5]), table([0]))) == [
        2999, 10**6, 17, 5
    ]  # fmt: skip


def test_a_checkpoint_says_whose_rows_they_are() -> None:
    stacked = StackedStates()
    assert stacked.state() == {}
    stacked.write("model", ints([4, 1]), table([4, 1]))
    stacked.write("model", ints([7]), table([7]))  # makes room for more than there are
    stacked.write("optimizer", ints([1]), {"w": torch.ones(1, 2)})
    saved = stacked.state()
    assert {path: len(array) for path, array in saved.items()} == {
        "model#clients": 3, "model/w": 3, "model/b": 3, "optimizer#clients": 1, "optimizer/w": 1,
    }  # fmt: skip
    assert saved["model#clients"].tolist() == saved["model/b"].tolist() == [4, 1, 7]


def test_arrays_restored_from_are_not_written_to() -> None:
    """One checkpoint may be restored twice, and may lie in memory that cannot be written."""
    stacked = StackedStates()
    stacked.write("model", ints([0, 1, 2]), table([0, 1, 2]))
    saved = {path: array.copy() for path, array in stacked.state().items()}
    for array in saved.values():
        array.flags.writeable = False
    again = StackedStates()
    again.restore(saved)
    again.write("model", ints([1]), table([1], value=5))
    assert saved["model/w"][:, 0, 0].tolist() == [0, 1, 2]
    assert weights(again.read("model", ints([0, 1, 2]), table([0]))) == [0, 6, 2]


def test_contexts_keep_records_of_their_own() -> None:
    """What Flower saves of a client is that client's alone."""
    own = {client: RecordDict() for client in (3, 5)}
    contexts = ContextStates(own)
    contexts.write("model", ints([5, 3]), table([5, 3]))
    assert {c: sorted(state) for c, state in own.items()} == {3: ["model"], 5: ["model"]}
    for client, state in own.items():
        expected = {name: tensor[0] for name, tensor in table([client]).items()}
        found: dict[str, Tensor] = from_record(state.array_records["model"])
        assert {name: t.tolist() for name, t in found.items()} == {
            name: t.tolist() for name, t in expected.items()
        }


def test_contexts_read_what_came_back_from_a_disk() -> None:
    own = {client: RecordDict() for client in range(3)}
    own[1]["model"] = to_record({name: t[0].numpy() for name, t in table([1]).items()})
    contexts = ContextStates(own)
    assert weights(contexts.read("model", ints([2, 1]), table([9]))) == [9, 1]
    contexts.write("model", ints([2]), table([2]))
    assert weights(contexts.read("model", ints([2, 1, 0]), table([9]))) == [2, 1, 9]
