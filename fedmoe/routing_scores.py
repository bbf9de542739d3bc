"""What the router did in a round, from the clients' evaluation replies.

Letters: C clients, E experts.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Message

from fedmoe.messages import words
from fedmoe.messages.replies import Replies
from fedmoe.models.router_metrics import (
    ClientSums,
    RouterKind,
    RouterMetrics,
    client_shares,
    router_metrics,
)
from fedmoe.tracking.files import to_json, write_atomic

ROUTING_FILE, CLIENTS_FILE = "routing.jsonl", "routing_clients.json"
_DIGITS = 4


class FederationRouting(NamedTuple):
    """One round of all clients.

    Attributes:
        round: from 1.
        metrics: the numbers.
        nodes: who replied, C of them.
        sums: what they told.
    """

    round: int
    metrics: RouterMetrics
    nodes: list[int]
    sums: ClientSums

    def as_json(self) -> dict[str, Any]:
        """The round's line of `routing.jsonl`."""
        return {"round": self.round, **self.metrics.as_json()}


def federation_routing(
    number: int, kind: RouterKind, replies: Sequence[Message]
) -> FederationRouting | None:
    """Put the clients' sums together.

    Args:
        number: of the round.
        kind: of the model.
        replies: good evaluation replies.

    Returns:
        `None` if a reply has no sums, or no client has samples.
    """
    columns = Replies.of(replies)
    if not columns.has_arrays(words.ROUTING):
        return None
    sums = kind.split(columns.arrays(words.ROUTING)[words.SUMS].cpu().numpy())
    metrics = router_metrics(kind, sums, columns.numbers()[words.NUM_EXAMPLES])
    if metrics is None:
        return None
    return FederationRouting(number, metrics, columns.nodes, sums)


def write_clients(path: Path, routing: FederationRouting, client_of: Callable[[int], int]) -> None:
    """Write a JSON file of each client's shares of the experts in one round.

    Args:
        path: of the file, which is replaced as a whole.
        routing: of the round.
        client_of: the client behind a node id.
    """
    clients = np.array([client_of(node) for node in routing.nodes])
    order = clients.argsort()
    shares_CE = client_shares(routing.sums)[order].round(_DIGITS)
    value = {"round": routing.round, "clients": clients[order], "shares": shares_CE}
    write_atomic(path, (to_json(value) + "\n").encode())
