"""Messages to many nodes, made one by one only if somebody looks.

A round's messages differ in little but their destination. A `Broadcast` keeps what they share
once; to Flower's grids and to anyone who indexes it, it is a list of ordinary messages.

Letters: C nodes that are sent to.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from fedmoe.data.federation import Ints
from fedmoe.messages.on_demand import MessagesOnDemand
from fedmoe.messages.seams import RecordType, unchecked_records

Distinct = tuple[RecordDict, str, Ints]


class Broadcast(MessagesOnDemand):
    """A list of messages of one kind that share their records.

    A message, once made, is kept, so that whoever changes it changes what is sent. Arrays are
    shared by all messages; other records are each message's own.

    Attributes:
        nodes: the C nodes, in order.
        kind: Flower's message type.
        records: what every node is sent.
        personal: what each node is sent besides, in the order of `nodes`; `None` for nothing.
        mergeable: whether the sender is content with the mean of the arrays that come back,
            weighted by number of examples.

    Raises:
        ValueError: a node is asked more than once, or there are not as many sets of personal
            records as nodes.
    """

    def __init__(
        self,
        nodes: Sequence[int],
        kind: str,
        records: Mapping[str, RecordType],
        *,
        personal: Sequence[Mapping[str, RecordType]] | None = None,
        mergeable: bool = False,
    ) -> None:
        if personal is not None and len(personal) != len(nodes):
            raise ValueError(f"{len(personal)} sets of personal records for {len(nodes)} nodes")
        if len(set(nodes)) < len(nodes):
            node = next(node for node, count in Counter(nodes).items() if count > 1)
            raise ValueError(f"node {node} is asked more than once")
        super().__init__({})
        self.nodes, self.kind, self.records = nodes, kind, dict(records)
        self.personal, self.mergeable = personal, mergeable

    def __len__(self) -> int:
        return len(self.nodes)

    def _make(self, place: int) -> Message:
        return Message(
            content=self._content(place), message_type=self.kind, dst_node_id=self.nodes[place]
        )

    @property
    def has_made(self) -> bool:
        """Whether a message has been made, and so may have been changed."""
        return bool(self._made)

    def sent_records(self, key: str) -> list[tuple[RecordType, Ints]]:
        """The distinct records of one key that are sent, each with the (n,) places it is sent to.

        Messages that have been made are looked at, since they may have been changed.
        """
        unmade = np.full(len(self), True)
        unmade[list(self._made)] = False
        everybody = self.records.get(key)
        found: list[tuple[RecordType | None, list[int]]] = []
        if self.personal is None:
            found.append((everybody, np.flatnonzero(unmade).tolist()))
        else:
            for place in np.flatnonzero(unmade).tolist():
                found.append((self.personal[place].get(key, everybody), [place]))
        found += [(message.content.get(key), [p]) for p, message in self._made.items()]
        groups: dict[int, tuple[RecordType, list[int]]] = {}
        for record, places in found:
            if record is not None:
                groups.setdefault(id(record), (record, []))[1].extend(places)
        return [(record, np.array(places, dtype=np.int64)) for record, places in groups.values()]

    def take(self, places: Ints) -> "Broadcast":
        """The messages at the given places, (n,)."""
        chosen = places.tolist()
        taken = Broadcast(
            [self.nodes[place] for place in chosen],
            self.kind,
            self.records,
            personal=self.personal and [self.personal[place] for place in chosen],
            mergeable=self.mergeable,
        )
        taken._made = {n: self._made[p] for n, p in enumerate(chosen) if p in self._made}
        return taken

    def _content(self, place: int) -> RecordDict:
        records = self.records | dict(self.personal[place] if self.personal else {})
        return unchecked_records(
            {k: r if isinstance(r, ArrayRecord) else r.copy() for k, r in records.items()}
        )

    def distinct(self) -> list[Distinct]:
        """Each content that is sent, its message type, and the (n,) places it is sent to.

        Messages that have been made are looked at, since they may have been changed.
        """
        made = [(m.content, m.metadata.message_type, np.array([p])) for p, m in self._made.items()]
        unmade = np.full(len(self), True)
        unmade[list(self._made)] = False
        places = np.flatnonzero(unmade)
        groups: dict[int, list[int]] = {}
        if self.personal is None:
            groups[0] = places.tolist()
        else:
            for place in places.tolist():
                groups.setdefault(id(self.personal[place]), []).append(place)
        return made + [
            (self._content(own[0]), self.kind, np.array(own)) for own in groups.values() if own
        ]


def distinct_contents(messages: Sequence[Message]) -> list[Distinct]:
    """See `Broadcast.distinct`; Flower's strategies give every message one and the same content."""
    if isinstance(messages, Broadcast):
        return messages.distinct()
    found: dict[tuple[int, str], tuple[RecordDict, str, list[int]]] = {}
    for place, message in enumerate(messages):
        content, kind = message.content, message.metadata.message_type
        found.setdefault((id(content), kind), (content, kind, []))[2].append(place)
    return [(content, kind, np.array(places)) for content, kind, places in found.values()]
