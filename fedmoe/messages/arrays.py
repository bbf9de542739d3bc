"""Arrays in Flower's records: a cohort's stay stacked until somebody looks.

A cohort's trained parameters are one tensor per name with the client axis first. Each reply
carries a `CohortRecord`: an ordinary `ArrayRecord` that knows its row of the stack and makes
real (serialised) `Array`s only when read. Strategies of ours read the stack instead.

Letters: C clients of the stack.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache, wraps
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedmoe.data.federation import Ints
from fedmoe.messages.seams import unchecked_records
from fedmoe.models.base import Parameters

Signature = dict[str, tuple[tuple[int, ...], str]]  # shape and dtype by name
Numbers = dict[str, NDArray[Any]]  # many clients' numbers by name, (C,) each


class Stack:
    """A cohort's tensors by name, client axis first; not to be changed once made."""

    def __init__(self, tensors: Parameters) -> None:
        self.tensors = tensors

    def take(self, places: Ints) -> "Stack":
        """Some of the clients."""
        index = torch.from_numpy(places)
        return Stack({name: tensor[index] for name, tensor in self.tensors.items()})

    @cached_property
    def finite_C(self) -> NDArray[np.bool_]:
        """Whether all of a client's numbers are finite."""
        tables = [t.reshape(len(t), math.prod(t.shape[1:])) for t in self.tensors.values()]
        # NaN and infinities survive a sum, which is 10 to 30 times as fast as looking at each
        # number; a sum that overflowed is looked at again.
        sums = [table.sum(dim=1).isfinite() for table in tables]
        finite_C = np.asarray(torch.stack(sums).all(dim=0).cpu().numpy())
        for row in np.flatnonzero(~finite_C):
            finite_C[row] = all(bool(table[row].isfinite().all()) for table in tables)
        return finite_C

    @cached_property
    def bytes_per_client(self) -> int:
        """Serialised size of one client's arrays."""
        return sum(
            len(npy_headers(shape, dtype)[0]) + math.prod(shape) * np.dtype(dtype).itemsize
            for shape, dtype in self.signature.values()
        )

    @cached_property
    def signature(self) -> Signature:
        """Shape and dtype of one client's arrays by name."""
        return {k: (tuple(t.shape[1:]), dtype_name(t.dtype)) for k, t in self.tensors.items()}


Records = dict[str, Stack | Numbers]  # many clients' records by key


@lru_cache
def dtype_name(dtype: torch.dtype) -> str:
    """What NumPy calls a dtype, and so what Flower's records do."""
    return str(torch.empty(0, dtype=dtype, device="cpu").numpy().dtype)


class CohortRecord(ArrayRecord):
    """One client's row of a `Stack`, as an `ArrayRecord` that fills itself when read."""

    def __init__(self, stack: Stack, row: int) -> None:
        super().__init__()
        self.__dict__.update(stack=stack, row=row, filled=False)

    def copy(self) -> ArrayRecord:  # type: ignore[override]
        """A record of the same arrays; one that nobody has read stays a row of the stack."""
        if not self.__dict__["filled"]:
            return CohortRecord(self.__dict__["stack"], self.__dict__["row"])
        return ArrayRecord(dict(self.items()))

    def _fill(self) -> None:
        if self.__dict__["filled"]:
            return
        self.__dict__["filled"] = True
        for name, tensor in self.__dict__["stack"].tensors.items():
            self[name] = Array(tensor[self.__dict__["row"]].contiguous().cpu().numpy())


def _filling(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def filled(self: CohortRecord, *args: Any, **kwargs: Any) -> Any:
        for record in (self, *args):  # an argument may be another, to be compared with
            if isinstance(record, CohortRecord):
                record._fill()
        return method(self, *args, **kwargs)

    return filled


_READERS = (
    "__contains__", "__delitem__", "__eq__", "__getitem__", "__iter__", "__len__", "__repr__",
    "__setitem__", "items", "keys", "values",
)  # fmt: skip
for _name in _READERS:
    setattr(CohortRecord, _name, _filling(getattr(ArrayRecord, _name)))


def stack_of(record: ArrayRecord) -> tuple[Stack, int] | None:
    """The stack behind a record and its row, or `None` if it holds arrays of its own."""
    if isinstance(record, CohortRecord) and not record.__dict__["filled"]:
        return record.__dict__["stack"], record.__dict__["row"]
    return None


def detached(records: RecordDict) -> RecordDict:
    """Copies of the records that share their arrays: changing a record changes no other."""
    return unchecked_records({key: value.copy() for key, value in records.items()})


def plain(records: RecordDict) -> RecordDict:
    """The same records with every array made, fit for Flower's own serialisation.

    Flower names classes on the wire, and knows no `CohortRecord` there.
    """
    return RecordDict(
        {
            key: ArrayRecord(dict(value.items())) if isinstance(value, CohortRecord) else value
            for key, value in records.items()
        }
    )


def to_record(tensors: Mapping[str, Tensor | NDArray[Any]]) -> ArrayRecord:
    """Arrays by name as a record."""
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in tensors.items()})


def lazy_record(tensors: Parameters) -> ArrayRecord:
    """The same, but serialised only if somebody reads it; the tensors must not change."""
    return CohortRecord(Stack({name: tensor[None] for name, tensor in tensors.items()}), 0)


def signature_of(record: ArrayRecord) -> Signature:
    """Shapes and dtypes of a record's arrays; makes none."""
    stacked = stack_of(record)
    if stacked is not None:
        return stacked[0].signature
    return {name: (tuple(array.shape), array.dtype) for name, array in record.items()}


def from_record(record: ArrayRecord) -> Parameters:
    """A record's arrays as tensors of their own."""
    return {name: torch.from_numpy(array.numpy()) for name, array in record.items()}


def tensors_of(record: ArrayRecord) -> Parameters:
    """A record's arrays as tensors; those of a cohort's record are rows of its stack."""
    stacked = stack_of(record)
    if stacked is None:
        return from_record(record)
    stack, row = stacked
    return {name: tensor[row] for name, tensor in stack.tensors.items()}


def as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Tensors as NumPy arrays, which share their memory where that is the CPU's."""
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def copied(arrays: Mapping[str, NDArray[Any]]) -> Parameters:
    """Arrays as tensors of their own: what is written to one does not show in the other."""
    return {name: torch.tensor(array) for name, array in arrays.items()}


def gather(records: Iterable[ArrayRecord]) -> Parameters:
    """Many clients' records as stacked tensors, client axis first.

    Records of one stack are picked from it in one go; a record that all clients share is read
    once.

    Raises:
        ValueError: they hold different arrays.
    """
    items = list(records)
    if shared(items):
        alone = tensors_of(items[0])
        return {name: t.expand(len(items), *t.shape) for name, t in alone.items()}
    stacks = [stack_of(item) for item in items]
    first = stacks[0]
    if first is not None and all(s is not None and s[0] is first[0] for s in stacks):
        rows = torch.tensor([s[1] for s in stacks if s is not None])
        return {name: tensor[rows] for name, tensor in first[0].tensors.items()}
    singles = [tensors_of(item) for item in items]
    if any(one.keys() != singles[0].keys() for one in singles):
        raise ValueError("records that are to be stacked hold different arrays")
    return {name: torch.stack([one[name] for one in singles]) for name in singles[0]}


def shared(records: Sequence[ArrayRecord]) -> bool:
    """Whether all records hold the very same arrays, as in a broadcast."""
    first = records[0]
    if stack_of(first) is not None:
        return all(record is first for record in records)
    arrays = list(first.values())
    return all(
        record is first
        or (
            stack_of(record) is None
            and len(record) == len(arrays)
            and all(a is b for a, b in zip(record.values(), arrays, strict=True))
        )
        for record in records
    )


@lru_cache(maxsize=1024)
def npy_headers(shape: tuple[int, ...], dtype: str) -> tuple[bytes, bytes]:
    """What the .npy format puts before the data of an array in C order, and in Fortran order."""

    def header(fortran_order: bool) -> bytes:
        buffer = BytesIO()
        descr = np.dtype(dtype).str
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": descr, "fortran_order": fortran_order, "shape": shape}
        )
        return buffer.getvalue()

    return header(False), header(True)
