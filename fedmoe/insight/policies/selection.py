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

Letters: N clients that are there, K of them known.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe.data.federation import Ints
from fedmoe.insight.memory import Memory
from fedmoe.insight.policies.base import Policy
from fedmoe.schema import SelectionPolicyConfig

Doubles = NDArray[np.float64]
_WORD = 0x6F6F7274  # sets these draws apart from others by seed and round


def utilities(size_K: Ints, loss_K: Doubles, last_K: Ints, round: int, clip: float) -> Doubles:
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
    size_K: Ints
    loss_K: Doubles
    last_K: Ints

    @classmethod
    def of(cls, memory: Memory, clients: Ints) -> "_There":
        newest = memory.newest("round", "num_examples", "final_loss", "loss_improvement")
        known_N = np.isin(clients, newest["client_id"])
        place_K = np.searchsorted(newest["client_id"], clients[known_N])
        told = {name: column[place_K] for name, column in newest.items()}
        loss_K = told["final_loss"] + told["loss_improvement"]  # the first epoch's
        return cls(known_N, told["num_examples"], loss_K, told["round"])


class Selection(Policy):
    """Asks those clients whose losses are large."""

    name = "selection"

    def __init__(self, config: SelectionPolicyConfig) -> None:
        super().__init__()
        self.config = config

    @override
    def learn(self, memory: Memory, round: int) -> None:
        """Nothing: what is needed is in the memory."""

    @override
    def select(self, memory: Memory, round: int, clients: Ints, count: int) -> Ints | None:
        if self.config.kind == "uniform":
            return None
        there = _There.of(memory, clients)
        rng = np.random.default_rng([self.setting.seed, _WORD, round])
        if self.config.kind == "oort":
            return self._oort(rng, there, count, round)
        return self._power_of_choice(rng, there, count)

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
