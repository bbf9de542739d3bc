"""Class prototypes: what a class looks like on average, over the whole federation.

Clients send, per class, the sum and the number of their training inputs; the server returns the
mean of each class. A client *rehearses* them: to its own loss it adds the cross-entropy of its
model on each prototype, so that it keeps telling classes apart of which it has seen little.

After FedProto (arXiv 2105.00243), which averages means of a learned representation and pulls
each sample's representation to its class's mean. Deviations, each measured better here: the
prototypes are of the inputs, since representations of models that are never averaged do not
share axes, and they are trained on as samples instead of being a target for the representation;
clients' sums are added, so that a mean weighs its samples and not its clients (the paper's
equation 6 does so too; its code does not).

What it tells: a class mean over at least `insight.min_count` samples, and that the
client has the class.

Letters: O classes, D features.
"""

import numpy as np
from typing_extensions import override

from fedmoe.insight.guidance import Guidance
from fedmoe.insight.memory import Memory
from fedmoe.insight.policies.base import Policy
from fedmoe.schema import PrototypesPolicyConfig


class Prototypes(Policy):
    """The federation's class means, for everybody."""

    name = "prototypes"
    reads = ("prototypes",)

    def __init__(self, config: PrototypesPolicyConfig) -> None:
        super().__init__()
        self.config = config
        self._advice = Guidance()
        self._learned: tuple[object, ...] = ()

    @override
    def learn(self, memory: Memory, round: int) -> None:
        """Average, if any client has told sums."""
        names = ("prototype_sum", "prototype_count")
        if self._learned == (revision := memory.revision(*names)):
            return
        self._learned = revision
        clients, told = memory.collect(*names)
        if not len(clients):
            return
        count_O = told["prototype_count"].sum(axis=0, dtype=np.float64)
        mean_OD = told["prototype_sum"].sum(axis=0, dtype=np.float64)
        mean_OD /= np.maximum(count_O, 1)[:, None]
        known_O = count_O > 0
        weight_O = self.config.strength * known_O / max(int(known_O.sum()), 1)
        self._advice = self._advice.with_parts(
            {
                "prototypes": mean_OD.astype(np.float32),
                "prototype_weight": weight_O.astype(np.float32),
            }
        )
        self.decisions = {"clients": len(clients), "classes": int(known_O.sum())}

    @override
    def advise(self, client_id: int) -> Guidance:
        return self._advice
