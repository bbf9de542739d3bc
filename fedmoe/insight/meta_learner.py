"""The MetaLearner: observes insights, and turns them into guidance."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedmoe.insight.guidance import Guidance
from fedmoe.insight.insight import Insight
from fedmoe.insight.memory import Memory
from fedmoe.insight.policies import POLICIES
from fedmoe.schema import MetaLearnerConfig

DEFAULT = MetaLearnerConfig(policies=("prior", "prototypes"), prototype_strength=2.0)
DEFAULT_MEMORY_ROUNDS = 50
_SUMMARISED = ("final_loss", "loss_improvement", "mean_grad", "uncertainty", "volatility")


class MetaLearner:
    """Learns from a memory of insights by the policies that the configuration lists.

    Attributes:
        config: which policies, and how strong they are.
        memory: what has been observed.
        history: one summary a round, oldest first.
    """

    def __init__(self, config: MetaLearnerConfig = DEFAULT, memory: Memory | None = None) -> None:
        """Begin with what is known.

        Args:
            config: by default that of `meta_learner=default`.
            memory: by default an empty one, as `strategy=insight` has it.
        """
        self.config = config
        self.memory = Memory(DEFAULT_MEMORY_ROUNDS) if memory is None else memory
        self.history: list[dict[str, Any]] = []
        self._guidance = Guidance()

    def observe(self, round: int, insights: Sequence[Insight]) -> dict[str, Any]:
        """Remember a round's insights and learn from all that are remembered.

        Returns:
            The round's summary, see `aggregate`.
        """
        self.memory.add(insights)
        self._guidance = self._learn()
        summary = {"round": round, **aggregate(insights)}
        self.history.append(summary)
        return summary

    def guidance(self, client_id: int) -> Guidance:
        """What this client is to be told."""
        del client_id  # the policies so far tell everybody the same
        return self._guidance

    def restore(self, history: list[dict[str, Any]]) -> None:
        """Go on from a restored memory: guidance is a function of it."""
        self.history = history
        self._guidance = self._learn()

    def _learn(self) -> Guidance:
        guidance = Guidance()
        for name in self.config.policies:
            guidance = POLICIES[name](self.memory, self.config, guidance)
        return guidance


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
