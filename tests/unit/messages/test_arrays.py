"""A cohort's record is an ordinary record to whoever looks, and costs nothing to others."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto

from fedmoe.messages import arrays, sizes
from fedmoe.messages.arrays import CohortRecord, Stack, gather
from fedmoe.messages.seams import ensure_task_identity


@pytest.fixture
def stack() -> Stack:
    torch.manual_seed(0)
    return Stack({"w": torch.randn(4, 2, 3), "b": torch.randn(4, 2), "n": torch.randn(4)})


def ordinary(stack: Stack, row: int) -> ArrayRecord:
    return ArrayRecord({name: Array(t[row].numpy()) for name, t in stack.tensors.items()})


READERS: dict[str, Any] = {
    "items": lambda r: {k: a.data for k, a in r.items()},
    "keys": lambda r: list(r.keys()),
    "values": lambda r: [a.data for a in r.values()],
    "iteration": list,
    "length": len,
    "membership": lambda r: ("w" in r, "x" in r),
    "getitem": lambda r: r["w"].numpy().tolist(),
    "get": lambda r: r.get("b").data,
    "equality": lambda r: dict(r.items()),
    "numpy": lambda r: [a.tolist() for a in r.to_numpy_ndarrays()],
    "torch": lambda r: {k: v.tolist() for k, v in r.to_torch_state_dict().items()},
    "bytes": lambda r: r.count_bytes(),
    "copy": lambda r: {k: a.data for k, a in r.copy().items()},
    "object id of an array": lambda r: r["w"].object_id,
    "pop": lambda r: (r.pop("w").data, len(r)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("row", [0, 3])
def test_reads_like_an_ordinary_record(stack: Stack, reader: str, row: int) -> None:
    read = READERS[reader]
    assert read(CohortRecord(stack, row)) == read(ordinary(stack, row))


def test_no_array_is_made_until_somebody_looks(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make(value: Any) -> Array:
        made.append(value)
        return Array(value)

    monkeypatch.setattr(arrays, "Array", make)
    records = [CohortRecord(stack, row) for row in range(4)]
    content = RecordDict({"arrays": records[0]})
    sizes.content_bytes(content)
    arrays.detached(content)
    gather(records)
    assert not made
    _ = records[0]["w"]
    assert len(made) == 3


def test_a_record_that_was_changed_no_longer_speaks_for_the_stack(stack: Stack) -> None:
    record = CohortRecord(stack, 1)
    record["w"] = Array(np.zeros((2, 3), np.float32))
    assert arrays.stack_of(record) is None
    assert torch.equal(gather([record])["w"], torch.zeros(1, 2, 3))


def test_changing_an_array_leaves_the_stack_alone(stack: Stack) -> None:
    before = {name: tensor.clone() for name, tensor in stack.tensors.items()}
    CohortRecord(stack, 2)["w"].numpy()[:] = 9
    assert all(torch.equal(before[name], stack.tensors[name]) for name in before)


@pytest.mark.parametrize("kind", ["one stack", "two stacks", "mixed", "ordinary", "broadcast"])
def test_gather_stacks_whatever_it_is_given(stack: Stack, kind: str) -> None:
    other = Stack({name: tensor + 1 for name, tensor in stack.tensors.items()})
    shared = ordinary(stack, 0)
    cases: dict[str, list[ArrayRecord]] = {
        "one stack": [CohortRecord(stack, row) for row in (3, 0, 0)],
        "two stacks": [CohortRecord(stack, 3), CohortRecord(other, 1)],
        "mixed": [ordinary(stack, 2), CohortRecord(other, 1)],
        "ordinary": [ordinary(stack, 2), ordinary(stack, 1)],
        "broadcast": [shared, shared.copy(), shared],
    }
    records = cases[kind]
    gathered = gather(records)
    for name, tensor in gathered.items():
        expected = np.stack([record[name].numpy() for record in records])
        np.testing.assert_array_equal(tensor.numpy(), expected)


def test_bytes_are_those_of_the_serialised_arrays(stack: Stack) -> None:
    config = ConfigRecord({"word": "né", "raw": b"abc", "x": 1.0, "many": [1, 2]})
    content = RecordDict(
        {"a": CohortRecord(stack, 0), "m": MetricRecord({"loss": 0.5}), "c": config}
    )
    serialised = sum(len(array.data) for array in ordinary(stack, 0).values())
    words = len("loss") + 8 + len("word") + 3 + len("raw") + 3 + len("x") + 8 + len("many") + 16
    assert sizes.content_bytes(content) == serialised + words
    assert sizes.content_bytes(RecordDict({"a": ordinary(stack, 0)})) == serialised


def test_plain_records_survive_flowers_serialisation(stack: Stack) -> None:
    ensure_task_identity()
    content = arrays.plain(RecordDict({"a": CohortRecord(stack, 1)}))
    assert type(content["a"]) is ArrayRecord
    message = message_from_proto(message_to_proto(Message(content, 7, "train")))
    assert message.content["a"] == ordinary(stack, 1)
    # The content-addressed id is that of the ordinary record, whose class it names.
    assert content["a"].object_id == ordinary(stack, 1).object_id


def test_detached_records_share_arrays_but_not_fate(stack: Stack) -> None:
    original = RecordDict({"a": ordinary(stack, 0), "b": CohortRecord(stack, 1)})
    own = arrays.detached(original)
    assert own.array_records["a"]["w"] is original.array_records["a"]["w"]
    del own.array_records["a"]["w"], own["b"]
    assert "w" in original["a"] and "b" in original
    assert copy.copy(original["b"]) is not None


def test_finiteness_is_known_per_client(stack: Stack) -> None:
    stack.tensors["w"][1, 0, 0] = torch.nan
    stack.tensors["b"][2, 1] = torch.inf
    assert stack.finite_C.tolist() == [True, False, False, True]
