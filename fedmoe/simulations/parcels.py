"""Messages and replies as they travel between this process and Ray's workers.

Plain arrays and numbers, which Ray's object store shares between the processes of a machine
without copying. Weights are put there once a phase; workers anywhere fetch them once a machine.

Letters: n messages of a parcel.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from numpy.typing import NDArray

from fedmoe.data.federation import Ints
from fedmoe.messages.arrays import Stack, as_arrays, copied, lazy_record, tensors_of
from fedmoe.messages.broadcast import Broadcast, distinct_contents
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import RecordType
from fedmoe.models import Parameters

Arrays = dict[str, NDArray[Any]]
Put = Callable[[Arrays], Any]  # arrays into the object store, a reference to them back
Get = Callable[[Any], Arrays]


class Packed(NamedTuple):
    """A record: arrays by reference, anything else as it is."""

    arrays: Any | None
    other: RecordType | None


@dataclass(frozen=True)
class Parcel:
    """A broadcast, or messages of one kind, on their way to one worker.

    Attributes:
        places: (n,) which of the phase's messages these are.
        nodes: whom they are sent to.
        kind: Flower's message type.
        records: what all are sent.
        personal: what each is sent besides.
        mergeable: see `Broadcast`.
    """

    places: Ints
    nodes: list[int]
    kind: str
    records: dict[str, Packed]
    personal: list[dict[str, Packed]] | None
    mergeable: bool

    def take(self, chosen: Ints) -> "Parcel":
        """Some of the messages."""
        own = chosen.tolist()
        personal = None if self.personal is None else [self.personal[n] for n in own]
        nodes = [self.nodes[n] for n in own]
        return Parcel(self.places[chosen], nodes, self.kind, self.records, personal, self.mergeable)

    def open(self, get: Get) -> Broadcast:
        """The broadcast, in the worker."""
        opened: dict[int, dict[str, RecordType]] = {}  # what was one object stays one
        unpacker = _Unpacker(get)
        for packed in self.personal or ():
            if id(packed) not in opened:
                opened[id(packed)] = unpacker.unpack(packed)
        return Broadcast(
            self.nodes,
            self.kind,
            unpacker.unpack(self.records),
            personal=None if self.personal is None else [opened[id(one)] for one in self.personal],
            mergeable=self.mergeable,
        )


def parcels(messages: Sequence[Message], put: Put) -> list[Parcel]:
    """A phase's messages; what they share is put into the store once."""
    packer = _Packer(put)
    if isinstance(messages, Broadcast) and not messages.has_made:
        return [
            Parcel(
                np.arange(len(messages)), list(messages.nodes), messages.kind,
                packer.pack(messages.records), packer.pack_each(messages.personal),
                messages.mergeable,
            )
        ]  # fmt: skip
    # Messages that somebody has made may differ; they still are one cohort to the worker, but
    # for a node that is asked more than once.
    asked = Counter[tuple[str, int]]()
    groups: dict[tuple[str, int], dict[int, RecordDict]] = {}
    for content, kind, places in distinct_contents(messages):
        for place in places.tolist():
            node = messages[place].metadata.dst_node_id
            groups.setdefault((kind, asked[kind, node]), {})[place] = content
            asked[kind, node] += 1
    return [
        Parcel(
            np.array(list(own)), [messages[n].metadata.dst_node_id for n in own], kind,
            {}, packer.pack_each(list(own.values())), False,
        )
        for (kind, _), own in groups.items()
    ]  # fmt: skip


class _Packer:
    """Packs records, each array record once."""

    def __init__(self, put: Put) -> None:
        self._put = put
        self._known: dict[int, Any] = {}

    def pack(self, records: Mapping[str, RecordType]) -> dict[str, Packed]:
        return {key: self._packed(record) for key, record in records.items()}

    def pack_each(
        self, personal: Sequence[Mapping[str, RecordType]] | None
    ) -> list[dict[str, Packed]] | None:
        """Each node's own records; those that are one object stay one."""
        if personal is None:
            return None
        packed: dict[int, dict[str, Packed]] = {}
        for records in personal:
            if id(records) not in packed:
                packed[id(records)] = self.pack(records)
        return [packed[id(records)] for records in personal]

    def _packed(self, record: RecordType) -> Packed:
        if not isinstance(record, ArrayRecord):
            return Packed(None, record)
        if id(record) not in self._known:
            self._known[id(record)] = self._put(as_arrays(tensors_of(record)))
        return Packed(self._known[id(record)], None)


class _Unpacker:
    """Unpacks records; arrays that came by one reference are one record."""

    def __init__(self, get: Get) -> None:
        self._get = get
        self._known: dict[Any, ArrayRecord] = {}

    def unpack(self, packed: Mapping[str, Packed]) -> dict[str, RecordType]:
        return {
            key: self._fetched(arrays) if other is None else other
            for key, (arrays, other) in packed.items()
        }

    def _fetched(self, reference: Any) -> ArrayRecord:
        if reference not in self._known:
            # Ray's arrays are read-only; a client's may be trained in place.
            self._known[reference] = lazy_record(copied(self._get(reference)))
        return self._known[reference]


class Answer(NamedTuple):
    """Replies on their way back.

    Attributes:
        parts: rows, records and means of each part of the replies.
        errors: code and reason by row.
    """

    parts: list[tuple[Ints, dict[str, Arrays], dict[str, Arrays], tuple[str, ...]]]
    errors: dict[int, tuple[int, str]]


def packed_replies(replies: Replies) -> Answer:
    """Replies, in the worker, as what travels."""
    parts = []
    for part in replies.parts:
        stacks = tuple(key for key, record in part.records.items() if isinstance(record, Stack))
        records = {
            key: as_arrays(record.tensors) if isinstance(record, Stack) else record
            for key, record in part.records.items()
        }
        means = {key: as_arrays(mean) for key, mean in part.means.items()}
        parts.append((part.rows, records, means, stacks))
    errors = {row: (m.error.code, m.error.reason or "") for row, m in replies.plain.items()}
    return Answer(parts, errors)


def opened_parts(answer: Answer, places: Ints) -> list[Part]:
    """The parts of what came back, their rows at these places of the phase."""
    return [
        Part(
            places[rows],
            {
                key: Stack(_tensors(record)) if key in stacks else record
                for key, record in records.items()
            },
            {key: _tensors(mean) for key, mean in means.items()},
        )
        for rows, records, means, stacks in answer.parts
    ]


def _tensors(arrays: Arrays) -> Parameters:
    with warnings.catch_warnings():
        # They lie in the object store, read-only; stacks are never changed.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
