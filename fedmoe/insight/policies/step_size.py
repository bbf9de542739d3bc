"""ARUBA: how large steps should be, from how far clients move and how steep it is.

Khodak, Balcan and Talwalkar, "Adaptive gradient-based meta-learning methods", NeurIPS 2019, arXiv
1906.02717, algorithm 2 with one step size for all coordinates (the authors' "isotropic"):

    eta = sqrt(sum_s (eps_s^2 + |theta_s - phi_s|^2 / 2) / sum_s (zeta_s^2 + sum_i |g_si|^2)),

s over the clients that have trained, each time that they have; theta_s - phi_s is what a round
changed of a client's model, g_si its gradient at step i, eps_s^2 = eps^2 / (s + 1)^p and so
zeta_s; s = 0 stands for the time before. Gradients that agree carry a client further than the
steps that they are made of, and eta grows by sqrt(S / 2) with S steps; where they cancel, it
shrinks by sqrt(2).

eps / zeta is the configured learning rate, as in the authors' code, and what clients are told is
a factor on it, so that all is reckoned in units of it.

Deviations. The paper's gradient descent has no momentum; with momentum m a gradient counts for
the sum of its echoes until the round ends, and on average over S equal gradients for

    kappa = mean over s = 1 .. S of (1 - m^s) / (1 - m),

or 1 / (1 - m) where momentum goes on from round to round; distances are divided by that. Sums
may forget (`decay`, which only the authors' Reptile code has); each client may have its own
(`per=client`). No client's steps, squared way a step, or squared gradient count for more than three
times the round's median, and the factor stays within `limit`.

Letters: C clients of a round.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe.insight.columns import Columns
from fedmoe.insight.guidance import Guidance
from fedmoe.insight.memory import Memory
from fedmoe.insight.policies.base import NOTHING, Policy, Setting, State
from fedmoe.insight.policies.robust import winsorised
from fedmoe.schema import StepSizePolicyConfig

Doubles = NDArray[np.float64]
_ALL = -1  # stands for the federation among the clients that have sums
_MOST = 3.0  # times the median, that a client counts for
_SUMS = 3  # moved, steepness, and how many clients they are sums over


def echo(steps_C: Doubles, setting: Setting) -> Doubles:
    """What a gradient counts for on average with momentum, 1 without; (C,)."""
    momentum = setting.momentum
    if setting.keeps_momentum:
        return np.full(len(steps_C), 1 / (1 - momentum))
    geometric = (1 - momentum**steps_C) / (1 - momentum)
    echo_C: Doubles = (steps_C - momentum * geometric) / (steps_C * (1 - momentum))
    return echo_C


class StepSize(Policy):
    """A learning rate for everybody, or one for each client."""

    name = "step_size"

    def __init__(self, config: StepSizePolicyConfig) -> None:
        super().__init__()
        self.config = config
        self._sums: dict[int, Doubles] = {}
        self._advice: dict[int, Guidance] = {}

    @override
    def learn(self, memory: Memory, round: int) -> None:
        """Add what a round's clients told."""
        told = memory.of_round(round)
        if told is None:
            return
        moved_C, steep_C, cut_C = self._sums_of(told)
        before = self._factor(_ALL)
        self._add(_ALL, moved_C, steep_C)
        if self.config.per == "client":
            self._add_each(told["client_id"].tolist(), moved_C, steep_C)
        self._advice = {}
        factor = self._factor(_ALL)
        self.decisions = {
            "learning_rate": factor,
            "per": self.config.per,
            "moved": float(moved_C.sum()),
            "steepness": float(steep_C.sum()),
            "cut": told["client_id"][cut_C].tolist(),
            "reason": (
                f"{'longer' if factor > before else 'shorter'} steps than the last: this round "
                f"alone would have {np.sqrt(moved_C.sum() / max(steep_C.sum(), 1e-300)):.3g}"
            ),
        }

    def _sums_of(self, told: Columns) -> tuple[Doubles, Doubles, NDArray[np.bool_]]:
        """How far each client went, how steep it was, and whose insight was cut; (C,)."""
        steps_C, cut_C = winsorised(np.maximum(told["steps"], 1).astype(np.float64), _MOST)
        unit_C = self.setting.learning_rate * echo(steps_C, self.setting)
        # By step: larger clients make more of them, and are no liars.
        pace_C, far_C = winsorised((told["distance"] / (unit_C * steps_C)) ** 2, _MOST)
        square_C, steep_C = winsorised(told["mean_grad"] ** 2 + told["std_grad"] ** 2, _MOST)
        return pace_C * steps_C**2 / 2, square_C * steps_C, cut_C | far_C | steep_C

    def _add(self, who: int, moved_C: Doubles, steep_C: Doubles) -> None:
        """Add clients to the sums, which have some of the time before in them."""
        zeta, power, decay = self.config.zeta, self.config.power, self.config.decay
        moved, steep, count = self._sums.get(who, self._before)
        trust = float((zeta**2 / (count + 2 + np.arange(len(moved_C))) ** power).sum())
        self._sums[who] = np.array(
            [
                decay * moved + moved_C.sum() + trust,
                decay * steep + steep_C.sum() + trust,
                count + len(moved_C),
            ]
        )

    def _add_each(self, clients: list[int], moved_C: Doubles, steep_C: Doubles) -> None:
        """Add clients, each to its own sums."""
        before = self._before
        sums_C3 = np.array([self._sums.get(client, before) for client in clients])
        count_C1 = sums_C3[:, 2:]
        told_C2 = np.stack([moved_C, steep_C], axis=1)
        trust_C1 = self.config.zeta**2 / (count_C1 + 2) ** self.config.power
        sums_C2 = self.config.decay * sums_C3[:, :2] + told_C2 + trust_C1
        now_C3 = np.concatenate([sums_C2, count_C1 + 1], axis=1)
        self._sums |= zip(clients, now_C3, strict=True)

    @property
    def _before(self) -> Doubles:
        """The sums of who has not trained yet."""
        return np.array([self.config.zeta**2, self.config.zeta**2, 0.0])

    def _factor(self, who: int) -> float:
        if who not in self._sums:
            return 1.0
        moved, steep, _ = self._sums[who]
        limit = self.config.limit
        return float(np.clip(np.sqrt(moved / steep), 1 / limit, limit))

    @override
    def advise(self, client_id: int) -> Guidance:
        if not self._sums:
            return NOTHING
        who = client_id if client_id in self._sums else _ALL
        if who not in self._advice:
            self._advice[who] = Guidance({}, {"learning_rate": self._factor(who)})
        return self._advice[who]

    @override
    def state(self) -> State:
        return {
            "who": np.array(list(self._sums), dtype=np.int64),
            "sums": np.array(list(self._sums.values()), dtype=np.float64).reshape(-1, _SUMS),
        }, {}

    @override
    def restore(
        self, memory: Memory, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
    ) -> None:
        self._sums = dict(zip(arrays["who"].tolist(), arrays["sums"].copy(), strict=True))
        self._advice = {}
