"""Each client's newest array of one name, a row each.

Letters: R clients that have a row, G of them that told a new one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Latest:
    """A table that grows with the clients that told the array.

    Attributes:
        clients: whose rows they are, (R,), in the order in which they first told theirs.
        rows: (R, ...).
        examples: of how many samples each client trained when it told its row, (R,).
        revision: another object after every change of what it holds.
    """

    def __init__(self) -> None:
        self.clients: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.rows: NDArray[Any] = np.zeros(0)
        self.examples: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.revision = object()
        self._place_of: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        """Of all that it holds."""
        return self.rows.nbytes + self.clients.nbytes + self.examples.nbytes

    def put(
        self, client_G: NDArray[np.int64], rows: NDArray[Any], examples_G: NDArray[np.int64]
    ) -> None:
        """Replace the clients' rows, (G, ...), or add them."""
        known = self._place_of
        place_G = np.array([known.setdefault(c, len(known)) for c in client_G.tolist()])
        if len(known) == len(self.clients) and np.array_equal(self.rows[place_G], rows):
            self.examples[place_G] = examples_G  # nothing is new but how many samples there were
            return
        self.revision = object()
        if not len(self.clients):
            self.clients, self.rows, self.examples = client_G, rows.copy(), examples_G.copy()
            return
        if new := len(known) - len(self.clients):
            added = place_G >= len(self.clients)
            self.clients = np.concatenate([self.clients, client_G[added]])
            self.rows = np.concatenate([self.rows, rows[added]])
            self.examples = np.concatenate([self.examples, examples_G[added]])
            if new == len(client_G):
                return
        self.rows[place_G], self.examples[place_G] = rows, examples_G

    def remove(self, clients: set[int]) -> None:
        """Forget some clients' rows."""
        keep = np.array([client not in clients for client in self.clients.tolist()], dtype=bool)
        self.clients, self.rows, self.examples = (
            self.clients[keep], self.rows[keep], self.examples[keep],
        )  # fmt: skip
        self._place_of = {client: place for place, client in enumerate(self.clients.tolist())}
        self.revision = object()

    def has(self, client: int) -> bool:
        """Whether a client has told one."""
        return client in self._place_of

    def of(self, clients: Sequence[int]) -> NDArray[Any]:
        """A copy of some clients' rows, (G, ...), in their order; all must have one."""
        return self.rows[[self._place_of[client] for client in clients]]

    def examples_of(self, clients: Sequence[int]) -> NDArray[np.int64]:
        """Of how many samples each told its row; -1 for who told none."""
        with_none = np.append(self.examples, -1)
        return with_none[[self._place_of.get(client, -1) for client in clients]]
