"""One exchange of messages with the clients: what came back, and what it weighed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from flwr.app import ArrayRecord, Message, MetricRecord

from fedmoe.guard import Inspection
from fedmoe.messages import words
from fedmoe.messages.arrays import record_bytes


@dataclass(frozen=True)
class Phase:
    """Training or evaluation, in one round.

    Attributes:
        inspection: good replies, and failures with their reasons.
        bytes_down: bytes sent to each node that was asked.
    """

    inspection: Inspection
    bytes_down: dict[int, int]

    def traffic(self) -> tuple[int, int]:
        """Bytes up and down, of all clients together."""
        return sum(self.inspection.bytes_up.values()), sum(self.bytes_down.values())

    def client_records(self, number: int, client_of: Callable[[int], int]) -> list[dict[str, Any]]:
        """The lines of `clients.jsonl`: one per client that was asked, by client.

        Args:
            number: of the round.
            client_of: the client behind a node id.
        """
        metrics = {
            reply.metadata.src_node_id: cast(MetricRecord, reply.content[words.METRICS])
            for reply in self.inspection.good
        }
        records = []
        for node in sorted(self.bytes_down, key=client_of):
            own = metrics.get(node)
            records.append(
                {
                    "round": number,
                    "client": client_of(node),
                    "status": "failed" if own is None else "ok",
                    "reason": self.inspection.failures.get(node),
                    "num_examples": None if own is None else own.get(words.NUM_EXAMPLES),
                    "loss": None if own is None else own.get(words.LOSS),
                    "bytes_up": self.inspection.bytes_up.get(node, 0),
                    "bytes_down": self.bytes_down[node],
                }
            )
        return records


def message_sizes(sent: Sequence[Message]) -> dict[int, int]:
    """Bytes sent to each node; arrays that many share are measured once."""
    known: dict[int, int] = {}
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
