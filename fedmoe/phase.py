"""One exchange of messages with the clients: what came back, and what it weighed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, Message

from fedmoe.guard import Inspection
from fedmoe.messages import words
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.replies import Replies
from fedmoe.messages.sizes import record_bytes


@dataclass(frozen=True)
class Phase:
    """Training or evaluation, in one round.

    Attributes:
        inspection: good replies, and failures with their reasons.
        bytes_down: bytes sent to each node that was asked.
        late: by how many rounds each reply is late that is, by node; these were asked earlier.
    """

    inspection: Inspection
    bytes_down: dict[int, int]
    late: dict[int, int] = field(default_factory=dict)

    def traffic(self) -> tuple[int, int]:
        """Bytes up and down, of all clients together."""
        return sum(self.inspection.bytes_up.values()), sum(self.bytes_down.values())

    def client_columns(self, number: int, client_of: Callable[[int], int]) -> dict[str, list[Any]]:
        """The lines of `clients.jsonl` as columns: an entry per client, by client.

        Args:
            number: of the round.
            client_of: the client behind a node id.
        """
        good = Replies.of(self.inspection.good)
        numbers = good.numbers()
        nodes = sorted(self.bytes_down.keys() | self.late.keys(), key=client_of)
        columns: dict[str, list[Any]] = {
            "round": [number] * len(nodes),
            "client": [client_of(node) for node in nodes],
            "status": ["ok" if node in self.inspection.bytes_up else "failed" for node in nodes],
            "reason": [self.inspection.failures.get(node) for node in nodes],
        }
        for node in self.late.keys() & self.inspection.bytes_up.keys():
            columns["status"][nodes.index(node)] = "late"
        for name, key in (("num_examples", words.NUM_EXAMPLES), ("loss", words.LOSS)):
            known = (
                dict(zip(good.nodes, numbers[key].tolist(), strict=True)) if key in numbers else {}
            )
            columns[name] = [known.get(node) for node in nodes]
        columns["bytes_up"] = [self.inspection.bytes_up.get(node, 0) for node in nodes]
        columns["bytes_down"] = [self.bytes_down.get(node, 0) for node in nodes]
        return columns


def message_sizes(sent: Sequence[Message]) -> dict[int, int]:
    """Bytes sent to each node; arrays that many share are measured once."""
    known: dict[int, int] = {}
    if isinstance(sent, Broadcast) and not sent.has_made:
        everybody = {key: record_bytes(record) for key, record in sent.records.items()}
        if sent.personal is None:
            return dict.fromkeys(sent.nodes, sum(everybody.values()))
        for own in sent.personal:
            if id(own) not in known:  # one's own record goes in place of everybody's
                both = everybody | {key: record_bytes(record) for key, record in own.items()}
                known[id(own)] = sum(both.values())
        own_sizes = [known[id(own)] for own in sent.personal]
        return dict(zip(sent.nodes, own_sizes, strict=True))
    sizes = {}
    for message in sent:
        total = 0
        for record in message.content.values():
            if not isinstance(record, ArrayRecord):
                total += record_bytes(record)
                continue
            if id(record) not in known:
                known[id(record)] = record_bytes(record)
            total += known[id(record)]
        sizes[message.metadata.dst_node_id] = total
    return sizes
