"""Which experts a client holds that has room for only some of them.

A client can only say how well the experts fit that it holds. So the server remembers what each
client last said of each expert, gives it those that fitted best, and now and then one on trial
that it has not held for longest: experts change, and what fitted worst once may fit best later.
(FedMoE, arXiv 2408.11304, section 4.2, chooses by how often a client's samples activate an
expert, which takes all experts to be held once; FLEX-MoE, arXiv 2512.23070, adds bounds on the
experts' load.)

Letters: K clients seen so far, E experts, M experts that a client has room for, C clients asked.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedmoe.data.drawing import hash_keys

Kind = Literal["fit", "random"]

_TRIAL_EVERY = 5  # times that a client takes part, once it has held all experts


class ExpertAssignment:
    """Remembers how well experts fitted, client by client, and chooses among them.

    Attributes:
        num_experts: E.
        held: M, 1 to E.
        kind: `fit`, or `random` for experts that are drawn once for each client.
        seed: of the draw.
        nodes: (K,) by row of the tables.
        fit_KE: what each client last said of each expert.
        last_KE: the round in which it did; 0 for never.
        times_K: how often it did.
    """

    def __init__(self, num_experts: int, held: int, kind: Kind = "fit", seed: int = 0) -> None:
        self.num_experts, self.held, self.kind, self.seed = num_experts, held, kind, seed
        self.nodes: list[int] = []
        self.fit_KE: NDArray[np.float64] = np.zeros((0, num_experts))
        self.last_KE: NDArray[np.int64] = np.zeros((0, num_experts), dtype=np.int64)
        self.times_K: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def choose(self, nodes: Sequence[int], *, explore: bool) -> NDArray[np.int64]:
        """The experts that each of some clients is to hold, (C, M), ascending.

        Those that fitted best; of those never held, by a turn of each client's own, so that all
        experts are held by somebody from the beginning.

        Args:
            nodes: the C clients.
            explore: whether the last of the M may be there on trial.
        """
        row_C = self._rows(nodes)
        turn_CE = (np.arange(self.num_experts) - row_C[:, None]) % self.num_experts
        if self.kind == "random":
            node_C1 = np.array(nodes, dtype=np.uint64).astype(np.int64)[:, None]
            key_CE = hash_keys(self.seed, node_C1, np.arange(self.num_experts))
            return np.sort(key_CE.argsort(axis=1)[:, : self.held], axis=1)
        last_CE = _padded(self.last_KE, row_C)
        score_CE = np.where(last_CE == 0, -np.inf, _padded(self.fit_KE, row_C))
        order_CE = np.lexsort((turn_CE, -score_CE), axis=1)
        if explore and self.held < self.num_experts:
            times_C = _padded(self.times_K, row_C)
            # Who has held none yet has nothing to compare with.
            due_C = (last_CE == 0).any(axis=1) | (times_C % _TRIAL_EVERY == 0)
            due_C &= times_C > 0
            away_CE = np.where(_first(order_CE, self.held), np.iinfo(np.int64).max, last_CE)
            oldest_C = np.lexsort((turn_CE, away_CE), axis=1)[:, 0]
            order_CE[:, self.held - 1] = np.where(due_C, oldest_C, order_CE[:, self.held - 1])
        return np.sort(order_CE[:, : self.held], axis=1)

    def note(
        self,
        nodes: Sequence[int],
        number: int,
        index_CM: NDArray[np.int64],
        fit_CM: NDArray[np.floating[Any]],
    ) -> None:
        """Remember what clients said.

        Args:
            nodes: the C clients.
            number: of the round, from 1.
            index_CM: the experts that they held.
            fit_CM: how well each fitted: the mean log-likelihood of their training samples.
        """
        row_C = self._rows(nodes)
        self.nodes += [n for n, row in zip(nodes, row_C, strict=True) if row >= len(self.nodes)]
        missing = len(self.nodes) - len(self.fit_KE)
        self.fit_KE = np.pad(self.fit_KE, ((0, missing), (0, 0)))
        self.last_KE = np.pad(self.last_KE, ((0, missing), (0, 0)))
        self.times_K = np.pad(self.times_K, (0, missing))
        self.fit_KE[row_C[:, None], index_CM] = fit_CM
        self.last_KE[row_C[:, None], index_CM] = number
        self.times_K[row_C] += 1

    def presume(self, nodes: Sequence[int], number: int, expert_C: NDArray[np.int64]) -> None:
        """Take one expert for the best of each client, and the others for bad."""
        fit_CE = np.where(np.arange(self.num_experts) == expert_C[:, None], 0.0, -np.inf)
        everything = np.broadcast_to(np.arange(self.num_experts), fit_CE.shape)
        self.note(nodes, number, everything, fit_CE)

    def proven(self, nodes: Sequence[int], index_CM: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the clients' experts are known to be among their best M, (C, M).

        That takes all experts to be known; of `random` ones, all are.
        """
        best_CM = self.choose(nodes, explore=False)
        among_CM = (index_CM[:, :, None] == best_CM[:, None, :]).any(axis=2)
        known_CE = _padded(self.last_KE, self._rows(nodes)) > 0
        return np.asarray(
            among_CM & (known_CE.all(axis=1, keepdims=True) | (self.kind == "random"))
        )

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """What a checkpoint keeps."""
        nodes = np.array(self.nodes, dtype=np.uint64)
        arrays = {"fit": self.fit_KE, "last": self.last_KE, "times": self.times_K}
        return {"nodes": nodes, **arrays}, {}

    def restore(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a checkpoint."""
        del values
        self.nodes = arrays["nodes"].tolist()
        self.fit_KE, self.last_KE, self.times_K = (
            arrays[name].copy() for name in ("fit", "last", "times")
        )

    def _rows(self, nodes: Sequence[int]) -> NDArray[np.int64]:
        """The clients' rows, (C,); those of clients not seen before follow after the others'."""
        known = {node: row for row, node in enumerate(self.nodes)}
        for node in nodes:
            known.setdefault(node, len(known))
        return np.array([known[node] for node in nodes], dtype=np.int64)


def _padded(table_KE: NDArray[Any], row_C: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of a table, (C, ...), zero where there are none yet."""
    more = max(0, int(row_C.max(initial=-1)) + 1 - len(table_KE))
    return np.pad(table_KE, ((0, more), *[(0, 0)] * (table_KE.ndim - 1)))[row_C]


def _first(order_CE: NDArray[np.int64], held: int) -> NDArray[np.bool_]:
    """Which experts are among the first of an order, (C, E)."""
    return np.asarray(order_CE.argsort(axis=1) < held)
