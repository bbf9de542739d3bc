"""Which experts a client holds that has room for only some of them.

A client can only say how well the experts fit that it holds. So the server remembers what each
client last said of each expert, gives it those that fitted best, and now and then one that it has
not held for longest: experts change, and what fitted worst once may fit best later. (FedMoE,
arXiv 2408.11304, section 4.2, chooses by how often a client's samples activate an expert, which
takes all experts to be held once; FLEX-MoE, arXiv 2512.23070, adds bounds on the experts' load.)

Letters: K clients seen so far, E experts, M experts that a client has room for, C clients asked.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_EXPLORE_EVERY = 5  # rounds, once all experts have been held


class ExpertAssignment:
    """Remembers how well experts fitted, client by client, and chooses among them.

    Attributes:
        num_experts: E.
        held: M, 1 to E.
    """

    def __init__(self, num_experts: int, held: int) -> None:
        self.num_experts, self.held = num_experts, held
        self.nodes: list[int] = []  # by row of the tables
        self.fit_KE: NDArray[np.float64] = np.zeros((0, num_experts))
        self.last_KE: NDArray[np.int64] = np.zeros((0, num_experts), dtype=np.int64)

    def choose(self, nodes: Sequence[int], number: int, *, explore: bool) -> NDArray[np.int64]:
        """The experts that each of some clients is to hold, (C, M), ascending.

        Args:
            nodes: the C clients.
            number: of the round; experts never held come first, by a turn of their own for each
                client, so that all experts are held by somebody from the beginning.
            explore: whether one expert may be there to be tried again.
        """
        rows_C = self._rows(nodes)
        never_CE = self.last_KE[rows_C] == 0
        turn_CE = (np.arange(self.num_experts) - rows_C[:, None]) % self.num_experts
        if not explore:  # what was never held is the last choice
            score_CE = np.where(never_CE, -np.inf, self.fit_KE[rows_C])
            return self._best(score_CE, turn_CE)
        score_CE = np.where(never_CE, np.inf, self.fit_KE[rows_C])
        if number % _EXPLORE_EVERY == 0:
            oldest_C = self.last_KE[rows_C].argmin(axis=1)
            score_CE[np.arange(len(rows_C)), oldest_C] = np.inf
        return self._best(score_CE, turn_CE)

    def note(
        self,
        nodes: Sequence[int],
        number: int,
        index_CM: NDArray[np.int64],
        fit_CM: NDArray[np.float64],
    ) -> None:
        """Remember what clients said.

        Args:
            nodes: the C clients.
            number: of the round, from 1.
            index_CM: the experts that they held.
            fit_CM: how well each fitted: the mean log-likelihood of their training samples.
        """
        rows_C1 = self._rows(nodes)[:, None]
        self.fit_KE[rows_C1, index_CM] = fit_CM
        self.last_KE[rows_C1, index_CM] = number

    def _best(self, score_CE: NDArray[np.float64], turn_CE: NDArray[np.int64]) -> NDArray[np.int64]:
        order_CE = np.lexsort((turn_CE, -score_CE), axis=1)
        return np.sort(order_CE[:, : self.held], axis=1)

    def _rows(self, nodes: Sequence[int]) -> NDArray[np.int64]:
        """The clients' rows, (C,), with new ones for those not seen before."""
        known = {node: row for row, node in enumerate(self.nodes)}
        new = [node for node in nodes if node not in known]
        if new:
            known |= {node: len(self.nodes) + n for n, node in enumerate(new)}
            self.nodes += new
            empty = np.zeros((len(new), self.num_experts))
            self.fit_KE = np.concatenate([self.fit_KE, empty])
            self.last_KE = np.concatenate([self.last_KE, empty.astype(np.int64)])
        return np.array([known[node] for node in nodes], dtype=np.int64)
