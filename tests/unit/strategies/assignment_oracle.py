"""Who holds which experts, with a dictionary entry for each client and expert."""

from collections.abc import Mapping, Sequence

import numpy as np

TRIAL = 5  # every so many times that a client takes part


class PlainAssignment:
    """`ExpertAssignment` as a loop over clients and experts.

    Attributes:
        order: the clients by when they were first heard of.
    """

    def __init__(self, experts: int, held: int) -> None:
        self.experts, self.held, self.order = experts, held, list[int]()
        self.fit: dict[tuple[int, int], float] = {}
        self.last: dict[tuple[int, int], int] = {}
        self.times: dict[int, int] = {}

    def choose(self, nodes: Sequence[int], explore: bool) -> list[list[int]]:
        order = self.order + [node for node in nodes if node not in self.order]
        return [self.choose_for(node, order.index(node), explore) for node in nodes]

    def choose_for(self, node: int, row: int, explore: bool) -> list[int]:
        def turn(e: int) -> int:
            return (e - row) % self.experts

        def rank(e: int) -> tuple[float, int]:
            return -self.fit.get((node, e), -np.inf), turn(e)

        *best, worst = sorted(range(self.experts), key=rank)[: self.held]
        times = self.times.get(node, 0)
        tries = explore and times and (times % TRIAL == 0 or not self.knows_all(node))
        away = [e for e in range(self.experts) if e not in (*best, worst)]
        if tries and away:
            worst = min(away, key=lambda e: (self.last.get((node, e), 0), turn(e)))
        return sorted([*best, worst])

    def knows_all(self, node: int) -> bool:
        return all((node, e) in self.last for e in range(self.experts))

    def note(self, node: int, number: int, fit: Mapping[int, float]) -> None:
        if node not in self.order:
            self.order.append(node)
        self.times[node] = self.times.get(node, 0) + 1
        for e, own in fit.items():
            self.fit[node, e], self.last[node, e] = own, number
