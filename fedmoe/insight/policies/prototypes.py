"""Class prototypes: what a class looks like on average, over the clients that mean the same by it.

Clients send, per class, the sum and the number of their training inputs, and how far these lie
from their mean; the server returns to each client the mean of each class over its cluster, the
clients whose classes look alike (see `fedmoe.insight.clusters`), which may be the whole
federation. A client *rehearses* them: to its own loss it adds the cross-entropy of its model on
each prototype, so that it keeps telling classes apart of which it has seen little.

After FedProto (arXiv 2105.00243), which averages means of a learned representation and pulls
each sample's representation to its class's mean. Deviations, each measured better here: the
prototypes are of the inputs, since representations of models that are never averaged do not
share axes, and they are trained on as samples instead of being a target for the representation;
clients' sums are added, so that a mean weighs its samples and not its clients (the paper's
equation 6 does so too; its code does not); and a client is not told the means of others that
mean something else. A client that told of no class, or is not believed (see
`fedmoe.insight.policies.robust`), is in no cluster and told nothing; with `of=federation` all are
told the same, and those who are not believed are not heard.

What it tells: a class mean over at least `insight.min_count` samples, and that the
client has the class.

Letters: K clients, O classes, D features.
"""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe.insight.guidance import Guidance
from fedmoe.insight.memory import Memory
from fedmoe.insight.policies.base import NOTHING, Policy
from fedmoe.insight.policies.clustering import CLUSTERED_BY, clusters_in, everybody_in
from fedmoe.schema import PrototypesPolicyConfig


class Prototypes(Policy):
    """The class means of a client's cluster, or of the federation."""

    name = "prototypes"

    def __init__(self, config: PrototypesPolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.reads = CLUSTERED_BY if config.of == "cluster" else ("prototypes",)
        self._advice: dict[int, Guidance] = {}
        self._cluster_of: dict[int, int] = {}
        self._learned: tuple[object, ...] = ()

    @override
    def learn(self, memory: Memory, round: int) -> None:
        """Average, if any client has told sums."""
        names = ("prototype_sum", "prototype_count", "class_trace")
        if self._learned == (revision := memory.revision(*names)):
            return
        self._learned = revision
        clients, found = (everybody_in if self.config.of == "federation" else clusters_in)(memory)
        if not len(clients):
            return
        told_clients, told = memory.collect(*names[:2])
        among = np.isin(told_clients, clients)
        sum_KOD, count_KO = (
            told[name][among] * found.weight_K.reshape(-1, *[1] * (told[name].ndim - 1))
            for name in names[:2]
        )
        label_K = found.label_K
        self._cluster_of = dict(zip(clients.tolist(), label_K.tolist(), strict=True))
        self._advice = {
            cluster: self._means(
                sum_KOD[label_K == cluster], count_KO[label_K == cluster],
                self._advice.get(cluster, NOTHING),
            )
            for cluster in range(int(label_K.max()) + 1)
        }  # fmt: skip
        self.decisions = {
            "clients": len(clients), "clusters": len(self._advice),
            "classes": [
                int((advice.parts["prototype_weight"] > 0).sum())
                for advice in self._advice.values()
            ],
            "capped": list(found.capped),
        }  # fmt: skip
        self.suspects = found.suspects

    def _means(
        self, sum_KOD: NDArray[np.float64], count_KO: NDArray[np.float64], before: Guidance
    ) -> Guidance:
        """Those of some clients."""
        count_O = count_KO.sum(axis=0)
        known_O = count_O > 0
        mean_OD = sum_KOD.sum(axis=0) / np.where(known_O, count_O, 1)[:, None]
        weight_O = self.config.strength * known_O / max(int(known_O.sum()), 1)
        return before.with_parts(
            {
                "prototypes": mean_OD.astype(np.float32),
                "prototype_weight": weight_O.astype(np.float32),
            }
        )

    @override
    def advise(self, client_id: int) -> Guidance:
        default = 0 if self.config.of == "federation" else -1
        return self._advice.get(self._cluster_of.get(client_id, default), NOTHING)
