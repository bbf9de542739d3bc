"""Federation-wide load balance of a mixture: a bias on the choice of experts, moved by the server.

Clients tell the share of their training samples' slots that goes to each expert (`expert_load`);
the server moves a bias by how far the federation's shares f are from even ones, and clients of
`model/router=loss_free` choose the experts with the largest p_e + b_e, weighted by p_e alone:

    b_e <- b_e + u sign(1 / E - f_e)    or    b_e <- b_e + u (1 - E f_e),

the rule of loss-free balancing (Wang et al., arXiv 2408.15664, algorithm 1), and the other one that
the paper compares it with, here in units of an even share. A step is a round, not a batch.

Without this policy clients of such a router move the bias themselves, each after its training by
the load that the server sent it (`fedmoe.clients.load`), with the sign alone. Deviations from
that: the bias holds from the beginning of a round on; only the round's own clients count, and no
client's samples for more than ten times the median; an expert that no client's router knows
(before a mixture's experts are made, or where nobody was sent it) is left alone; and the bias stays
within [-1, 1], for p is within [0, 1], so that what is beyond changes no choice and would only
take rounds to come back.

What it tells: E numbers that follow from all clients' loads.

Letters: C clients of a round, E experts.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe.insight.guidance import Guidance
from fedmoe.insight.memory import Memory
from fedmoe.insight.policies.base import NOTHING, Policy, State
from fedmoe.insight.policies.robust import winsorised
from fedmoe.schema import ExpertBiasPolicyConfig

Doubles = NDArray[np.float64]
_MOST = 1.0  # what the bias is at most, either way


class ExpertBias(Policy):
    """One bias for all."""

    name = "expert_bias"
    reads = ("expert_load",)

    def __init__(self, config: ExpertBiasPolicyConfig) -> None:
        super().__init__()
        self.config = config
        self._bias_E: Doubles | None = None
        self._advice = NOTHING

    @override
    def learn(self, memory: Memory, round: int) -> None:
        """Move the bias by what the round's clients told."""
        numbers = memory.of_round(round)
        clients, told = memory.collect("expert_load", "expert_importance")
        if numbers is None or not len(clients):
            return
        rows = np.isin(clients, numbers["client_id"])
        samples_C = numbers["num_examples"][np.isin(numbers["client_id"], clients)]
        load_CE, importance_CE = (
            told[name][rows].astype(np.float64) for name in ("expert_load", "expert_importance")
        )
        tells_C = importance_CE.any(axis=1)  # clients of too few samples tell zeros
        if not tells_C.any():
            return
        weight_C, cut_C = winsorised(samples_C[tells_C].astype(np.float64))
        load_E = weight_C @ load_CE[tells_C] / weight_C.sum()
        there_E = importance_CE.max(axis=0) > 0
        self._move(load_E, there_E)
        self._decide(load_E[there_E], clients[rows][tells_C][cut_C])

    def _move(self, load_E: Doubles, there_E: NDArray[np.bool_]) -> None:
        if self._bias_E is None:
            self._bias_E = np.zeros(len(load_E))
        away_E = np.where(there_E, 1 - there_E.sum() * load_E, 0)
        step_E = np.sign(away_E) if self.config.rule == "sign" else away_E
        self._bias_E = np.clip(self._bias_E + self.config.rate * step_E, -_MOST, _MOST)
        self._advise()

    def _advise(self) -> None:
        assert self._bias_E is not None
        self._advice = self._advice.with_parts({"expert_bias": self._bias_E.astype(np.float32)})

    def _decide(self, load_E: Doubles, cut: NDArray[np.int64]) -> None:
        assert self._bias_E is not None
        relative_E = load_E / load_E.mean()
        most, least = int(relative_E.argmax()), int(relative_E.argmin())
        self.decisions = {
            "bias": self._bias_E.tolist(),
            "load": load_E.tolist(),
            "variation": float(relative_E.std()),
            "max_violation": float(relative_E.max() - 1),
            "cut": cut.tolist(),
            "reason": (
                f"of the experts there, number {most} had {relative_E[most]:.2f} and number "
                f"{least} {relative_E[least]:.2f} times an even share"
            ),
        }

    @override
    def advise(self, client_id: int) -> Guidance:
        del client_id
        return self._advice

    @override
    def state(self) -> State:
        return {} if self._bias_E is None else {"bias": self._bias_E}, {}

    @override
    def restore(
        self, memory: Memory, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
    ) -> None:
        if "bias" in arrays:
            self._bias_E = arrays["bias"].copy()
            self._advise()
