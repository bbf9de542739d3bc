"""Who is to train in a round, by the losses that clients told.

`oort`: Lai et al., "Oort: efficient federated learning via guided participant selection", OSDI
2021, algorithm 1. A client is worth

    U = (|B| L - min) / (max - min) + sqrt(0.1 ln t / t_last),

|B| its samples, L its loss, cut at a quantile and scaled over the clients as in the authors' code,
t the round and t_last the last one in which it told. A share of those asked, which falls from
round to round, has never been asked before; the others are drawn by U among all that have at least
`cut_off` times the lowest U of as many best. Deviations: L is a mean and not the root of a mean
square, since only the mean is told; there is no factor for slow clients, as nothing is known of
speeds; the new ones are drawn evenly, as their sizes are not known; when nobody is new any more,
all are drawn by U.

`power_of_choice`: Cho, Wang and Joshi, "Client selection in federated learning: convergence
analysis and power-of-choice selection strategies", arXiv 2010.01243, section 3, with the stale
losses of its rpow-d: d candidates are drawn by their share of the samples, and those with the
largest losses are asked, those never asked before first. Deviation: who is new counts as having
the mean number of samples.

L is the mean loss of the first local epoch, whose first batches see the model as it was sent.
Draws depend on the experiment's seed and the round.

Clients may lie, and be refused. Losses and numbers of samples are cut at ten times their median
over the clients, and count as the median above a hundred times. Who has told in more than half as
many again of the remembered rounds as clients do on average, and one, has to wait (Oort, section
4.4, drops clients that were picked too often); and who was asked and told nothing n times in a row
waits 2^n - 1 rounds, or it would be new for ever. None of it holds where there are too few others.

Letters: N clients that are there, K of them known.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe.data.federation import Ints
from fedmoe.insight.memory import Memory
from fedmoe.insight.policies.base import Policy, State
from fedmoe.insight.policies.robust import plausible
from fedmoe.schema import SelectionPolicyConfig

Doubles = NDArray[np.float64]
_TOO_OFTEN, _SPARE = 1.5, 1  # times the mean, and rounds besides, that a client may be asked
_MOST_SILENT = 6  # 2 to this power is the longest wait, in rounds
_WORD = 0x6F6F7274  # sets these draws apart from others by seed and round


def utilities(
    size_K: Doubles | Ints, loss_K: Doubles, last_K: Ints, round: int, clip: float
) -> Doubles:
    """Oort's utility of clients that have told; (K,), above 0.

    Args:
        size_K: their samples.
        loss_K: their losses.
        last_K: the round in which each told last, from 1.
        round: that begins.
        clip: quantile to which larger ones are cut.
    """
    value_K = size_K * np.maximum(loss_K, 0.0)
    ordered = np.sort(value_K)
    value_K = np.minimum(value_K, ordered[min(int(len(ordered) * clip), len(ordered) - 1)])
    lowest = 0.999 * ordered[0]  # nobody's share of the draw is nothing
    spread = max(float(ordered[-1] - lowest), 1e-4)
    utility_K: Doubles = (value_K - lowest) / spread + np.sqrt(0.1 * math.log(round) / last_K)
    return utility_K


class _There(NamedTuple):
    """Who can be asked, and what those who are known told last, K of N."""

    known_N: NDArray[np.bool_]
    size_K: Doubles
    loss_K: Doubles
    last_K: Ints

    @classmethod
    def of(cls, memory: Memory, clients: Ints) -> "_There":
        newest = memory.newest("round", "num_examples", "final_loss", "loss_improvement")
        known_N = np.isin(clients, newest["client_id"])
        place_K = np.searchsorted(newest["client_id"], clients[known_N])
        told = {name: column[place_K] for name, column in newest.items()}
        loss_K = np.maximum(told["final_loss"] + told["loss_improvement"], 0.0)  # the first epoch's
        size_K = told["num_examples"].astype(np.float64)
        return cls(known_N, plausible(size_K), plausible(loss_K), told["round"])


class Selection(Policy):
    """Asks those clients whose losses are large."""

    name = "selection"

    def __init__(self, config: SelectionPolicyConfig) -> None:
        super().__init__()
        self.config = config
        self._answered: Mapping[int, int | None] = {}
        self._silent: dict[int, tuple[int, int]] = {}  # how often in a row, and the last round

    @override
    def answered(self, client_of: Mapping[int, int | None]) -> None:
        self._answered = client_of

    @override
    def learn(self, memory: Memory, round: int) -> None:
        """Note who told nothing; what else is needed is in the memory."""
        for name, client in self._answered.items():
            if client is None:
                self._silent[name] = self._silent.get(name, (0, 0))[0] + 1, round
            else:
                self._silent.pop(name, None)
        self._answered = {}

    @override
    def select(self, memory: Memory, round: int, clients: Ints, count: int) -> Ints | None:
        if self.config.kind == "uniform":
            return None
        waits_N = self._waits(memory, round, clients)
        free = np.flatnonzero(~waits_N)
        if len(free) < count:
            free = np.arange(len(clients))
        there = _There.of(memory, clients[free])
        rng = np.random.default_rng([self.setting.seed, _WORD, round])
        if self.config.kind == "oort":
            chosen = self._oort(rng, there, count, round)
        else:
            chosen = self._power_of_choice(rng, there, count)
        self.decisions["waiting"] = clients[waits_N].tolist()
        return free[chosen]

    def _waits(self, memory: Memory, round: int, clients: Ints) -> NDArray[np.bool_]:
        """(N,) who has been asked too often, or does not answer."""
        told = [columns["client_id"] for columns in memory.rounds]
        who, times = np.unique(np.concatenate(told or [clients[:0]]), return_counts=True)
        most = _TOO_OFTEN * times.sum() / len(clients) + _SPARE
        waits_N = np.isin(clients, who[times > most])
        for place, client in enumerate(clients.tolist()):
            if client in self._silent:
                silent, last = self._silent[client]
                waits_N[place] |= round - last < 2 ** min(silent, _MOST_SILENT)
        return waits_N

    @override
    def state(self) -> State:
        """Who did not answer."""
        rows = [(name, *silence) for name, silence in self._silent.items()]
        return {"silent": np.array(rows, dtype=np.int64).reshape(-1, 3)}, {}

    @override
    def restore(
        self, memory: Memory, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
    ) -> None:
        self._silent = {name: (silent, last) for name, silent, last in arrays["silent"].tolist()}

    def _oort(self, rng: np.random.Generator, there: _There, count: int, round: int) -> Ints:
        old, new = np.flatnonzero(there.known_N), np.flatnonzero(~there.known_N)
        config = self.config
        decayed = config.exploration * config.exploration_decay ** (round - 1)
        share = max(decayed, config.exploration_min) if len(new) else 0.0
        explored = min(max(int(count * share + 0.5), count - len(old)), len(new))
        exploited = count - explored
        chosen, cut_off = old[:0], 0.0
        if exploited:
            utility = utilities(there.size_K, there.loss_K, there.last_K, round, config.clip)
            cut_off = config.cut_off * float(np.sort(utility)[-exploited])
            fit = np.flatnonzero(utility >= cut_off)
            weight = utility[fit] / utility[fit].sum()
            chosen = old[rng.choice(fit, size=exploited, replace=False, p=weight)]
        chosen = np.concatenate([chosen, rng.choice(new, size=explored, replace=False)])
        self.decisions = {
            "kind": "oort", "asked": count, "new": explored, "exploration": share,
            "cut_off": cut_off,
            "reason": f"{explored} were never asked; the others have a utility of {cut_off:.3g} "
            "or more",
        }  # fmt: skip
        return chosen

    def _power_of_choice(self, rng: np.random.Generator, there: _There, count: int) -> Ints:
        size_N, loss_N = np.ones(len(there.known_N)), np.full(len(there.known_N), np.inf)
        if there.known_N.any():
            size_N[:] = there.size_K.mean()
            size_N[there.known_N], loss_N[there.known_N] = there.size_K, there.loss_K
        candidates = min(math.ceil(self.config.candidates * count), len(size_N))
        share_N = size_N / size_N.sum()
        drawn = rng.choice(len(size_N), size=candidates, replace=False, p=share_N)
        chosen: Ints = drawn[np.argsort(-loss_N[drawn], kind="stable")[:count]]
        new = int(np.isinf(loss_N[chosen]).sum())
        self.decisions = {
            "kind": "power_of_choice", "asked": count, "new": new, "candidates": candidates,
            "reason": f"{new} were never asked; the others have the largest losses of "
            f"{candidates} candidates",
        }  # fmt: skip
        return chosen
