"""Who begins with which expert of a mixture: clusters of clients, from their class means.

Clients send their class means and how wide their classes are; those whose classes mean the same
are one cluster (see `fedmoe.insight.clusters`). Or, with `by=sketches`, they send sketches of their
first updates, and those that pull the model the same way are one cluster
(`fedmoe.insight.sketches`): that needs no classes, but a model that all begin with, and who joins
later is in no cluster.

A strategy that makes the experts of a mixture out of clients' models, as `strategy=fedmoe` does,
makes them of these clusters as soon as there are several, and each client is told which is its
own, so that its private prior over the experts begins there and is held there as firmly as it is
otherwise held at even shares. With a single cluster nothing is said: then the strategy is as
without this policy. Clients in small clusters that are unlike the others, as those of liars are,
get no expert of their own and are told nothing.

After clustered federated learning (Sattler et al., arXiv 1910.01991), which splits a federation
by the directions of clients' updates, several rounds in; and FedEM (arXiv 2108.10252), whose
clients' priors begin at even shares.

What it tells the clients: the number of a cluster.

Letters: K clients.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe.data.federation import Ints
from fedmoe.insight.guidance import Guidance
from fedmoe.insight.memory import Memory
from fedmoe.insight.policies.base import NOTHING, Policy, State
from fedmoe.insight.policies.clustering import (
    CLUSTER_ARRAYS,
    CLUSTERED_BY,
    clusters_in,
    renamed,
)
from fedmoe.insight.policies.robust import unlike
from fedmoe.insight.sketches import cluster_sketches
from fedmoe.schema import ExpertAssignmentPolicyConfig

_SKETCH = "gradient_sketch"  # the payload, and its array


class ExpertAssignment(Policy):
    """An expert for each cluster of clients."""

    name = "expert_assignment"

    def __init__(self, config: ExpertAssignmentPolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.reads = CLUSTERED_BY if config.by == "classes" else (_SKETCH,)
        self._cluster_of: dict[int, int] = {}
        self._advice: dict[int, Guidance] = {}
        self._learned: tuple[object, ...] = ()

    @override
    def learn(self, memory: Memory, round: int) -> None:
        """Cluster, if anybody has told something new; never into more clusters than experts."""
        arrays = CLUSTER_ARRAYS if self.config.by == "classes" else (_SKETCH,)
        if self._learned == (revision := memory.revision(*arrays)):
            return
        self._learned = revision
        if self.config.by == "classes":
            self._learn_from_classes(memory)
        elif not self._cluster_of:  # later updates are of different experts
            self._learn_from_sketches(memory)

    def _learn_from_classes(self, memory: Memory) -> None:
        clients, found = clusters_in(memory, self.setting.num_experts)
        label_K = renamed(clients, found.label_K, self._cluster_of, self.setting.num_experts or 0)
        self._assign(clients, label_K, found.count)
        self.decisions = {
            "clients": len(clients), "clusters": found.count, "log_odds_of_fewer": found.log_odds,
            "capped": list(found.capped),
            "sizes": np.bincount(found.label_K[found.label_K >= 0]).tolist(),
        }  # fmt: skip
        self.suspects = found.suspects

    def _learn_from_sketches(self, memory: Memory) -> None:
        clients, told = memory.collect(_SKETCH)
        if not len(clients):
            return
        found = cluster_sketches(told[_SKETCH])
        odd, label_K = unlike(found.label_K), found.label_K.copy()
        label_K[list(odd)] = -1  # a cluster of liars gets no expert
        numbers, place_K = np.unique(label_K[label_K >= 0], return_inverse=True)
        label_K[label_K >= 0] = place_K
        if self.setting.num_experts is not None and len(numbers) > self.setting.num_experts:
            few = cluster_sketches(np.where(label_K[:, None] < 0, 0, told[_SKETCH]),
                                   self.setting.num_experts)  # fmt: skip
            label_K, numbers = few.label_K, np.unique(few.label_K[few.label_K >= 0])
        self._assign(clients, label_K, len(numbers))
        self.decisions = {
            "clients": len(clients), "clusters": len(numbers), "silhouette": found.silhouette,
            "sizes": np.bincount(label_K[label_K >= 0]).tolist(),
        }  # fmt: skip
        self.suspects = {int(clients[place]): reason for place, reason in odd.items()}

    def _assign(self, clients: Ints, label_K: Ints, count: int) -> None:
        """Tell clients which expert is theirs, if there are several clusters."""
        assigned = label_K >= 0 if count > 1 else np.full(len(clients), False)
        self._cluster_of = dict(
            zip(clients[assigned].tolist(), label_K[assigned].tolist(), strict=True)
        )
        self._tell_experts()

    def _tell_experts(self) -> None:
        self._advice = {
            cluster: self._advice.get(cluster, NOTHING).with_parts(
                {"expert": np.array(1 + cluster, dtype=np.float32)}
            )
            for cluster in sorted(set(self._cluster_of.values()))
        }

    @override
    def advise(self, client_id: int) -> Guidance:
        if self.setting.num_experts is None or client_id not in self._cluster_of:
            return NOTHING
        return self._advice[self._cluster_of[client_id]]

    @override
    def clusters(self, clients: Ints) -> Ints | None:
        if not self._cluster_of:
            return None
        return np.array([self._cluster_of.get(client, -1) for client in clients.tolist()])

    @override
    def state(self) -> State:
        """Who is in which cluster: by the memory alone, clusters would be named anew."""
        return {"cluster_of": np.array(list(self._cluster_of.items()), dtype=np.int64)}, {}

    @override
    def restore(
        self, memory: Memory, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
    ) -> None:
        self._cluster_of = dict(arrays["cluster_of"].reshape(-1, 2).tolist())
        self._tell_experts()
        self._learned = ()
        super().restore(memory, arrays, values)
