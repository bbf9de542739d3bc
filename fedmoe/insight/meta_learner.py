"""The MetaLearner: observes insights, and turns them into guidance by a list of policies."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.data.federation import Ints
from fedmoe.insight.guidance import Guidance
from fedmoe.insight.insight import Insight
from fedmoe.insight.memory import Memory
from fedmoe.insight.policies import POLICIES, Policy, Setting
from fedmoe.schema import MetaLearnerConfig, PriorPolicyConfig, PrototypesPolicyConfig

DEFAULT = MetaLearnerConfig(
    prior=PriorPolicyConfig(), prototypes=PrototypesPolicyConfig(strength=2.0)
)
_SUMMARISED = ("final_loss", "loss_improvement", "mean_grad", "uncertainty", "volatility")
_KEPT_SUMMARIES = 1000


class MetaLearner:
    """Learns from a memory of insights by the policies that the configuration lists.

    Attributes:
        config: which policies, and how strong they are.
        memory: what has been observed.
        policies: those that are on.
        history: one summary a round, oldest first; of the last 1,000.
    """

    def __init__(self, config: MetaLearnerConfig = DEFAULT, memory: Memory | None = None) -> None:
        """Begin with what is known.

        Args:
            config: by default that of `strategy=insight`.
            memory: by default an empty one, as `insight=default` has it.
        """
        self.config = config
        self.memory = Memory() if memory is None else memory
        self.policies: list[Policy] = [
            kind(options)
            for name, kind in POLICIES.items()
            if (options := getattr(config, name)) is not None
        ]
        self.history: list[dict[str, Any]] = []
        self._merged: dict[tuple[int, ...], tuple[Guidance, list[Guidance]]] = {}

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the payloads that the policies read."""
        return tuple(dict.fromkeys(name for policy in self.policies for name in policy.reads))

    def prepare(self, setting: Setting) -> None:
        """Say what experiment the policies are for, before the first round."""
        for policy in self.policies:
            policy.setting = setting

    def select(self, round: int, clients: Ints, count: int) -> Ints | None:
        """Who is to train in a round: the first policy that says, see `Policy.select`."""
        for policy in self.policies:
            places = policy.select(self.memory, round, clients, count)
            if places is not None:
                return places
        return None

    def observe(
        self,
        round: int,
        insights: Sequence[Insight],
        client_of: Mapping[int, int | None] | None = None,
    ) -> dict[str, Any]:
        """Remember a round's insights and learn from all that are remembered.

        Args:
            round: of the federation.
            insights: that came.
            client_of: see `Policy.answered`; by default everybody who told was known.

        Returns:
            The round's summary, see `aggregate`, and what the policies decided.
        """
        if client_of is None:
            client_of = {one.client_id: one.client_id for one in insights}
        self.memory.add(insights)
        self._merged = {}
        for policy in self.policies:
            policy.answered(client_of)
            policy.learn(self.memory, round)
        decisions = {policy.name: dict(policy.decisions) for policy in self.policies}
        summary = {"round": round, **aggregate(insights), "decisions": decisions}
        self.history = [*self.history[1 - _KEPT_SUMMARIES :], summary]
        return summary

    def guidance(self, client_id: int) -> Guidance:
        """What this client is to be told; the same object for clients that are told the same."""
        advice = [policy.advise(client_id) for policy in self.policies]
        key = tuple(id(one) for one in advice)
        if key not in self._merged:
            # The pieces are kept too: an object that is gone may give its id to another.
            self._merged[key] = _joined(advice), advice
        return self._merged[key][0]

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and plain values that `restore` takes: the memory, and what was learned."""
        arrays, values = self.memory.state()
        arrays = {f"memory/{name}": array for name, array in arrays.items()}
        learned: dict[str, Any] = {}
        for policy in self.policies:
            own, learned[policy.name] = policy.state()
            arrays |= {f"{policy.name}/{name}": array for name, array in own.items()}
        return arrays, {"memory": values, "policies": learned, "summaries": self.history}

    def restore(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self.memory.restore(_below("memory", arrays), values["memory"])
        self.history, self._merged = list(values["summaries"]), {}
        for policy in self.policies:
            own = _below(policy.name, arrays)
            policy.restore(self.memory, own, values["policies"][policy.name])


def _below(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    start = f"{prefix}/"
    return {n.removeprefix(start): array for n, array in arrays.items() if n.startswith(start)}


def _joined(advice: Sequence[Guidance]) -> Guidance:
    parts = {name: array for one in advice for name, array in one.parts.items()}
    numbers = {name: x for one in advice for name, x in one.numbers.items()}
    if "learning_rate" in numbers:
        numbers["learning_rate"] = math.prod(a.numbers.get("learning_rate", 1.0) for a in advice)
    return Guidance(parts, numbers)


def aggregate(insights: Sequence[Insight]) -> dict[str, Any]:
    """Means and deviations over a round's insights, and who is more or less certain than most.

    Returns:
        `mean` and `std` by field; `high_uncertainty` and `low_uncertainty`, lists of client ids
        above and not above the mean uncertainty; `insights`, how many.
    """
    if not insights:
        return {"insights": 0}
    columns = {name: np.array([getattr(i, name) for i in insights]) for name in _SUMMARISED}
    threshold = columns["uncertainty"].mean()
    return {
        "insights": len(insights),
        "mean": {name: float(values.mean()) for name, values in columns.items()},
        "std": {name: float(values.std()) for name, values in columns.items()},
        "high_uncertainty": [i.client_id for i in insights if i.uncertainty > threshold],
        "low_uncertainty": [i.client_id for i in insights if i.uncertainty <= threshold],
    }
