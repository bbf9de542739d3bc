"""Distillation: soft labels of public inputs, averaged over clients, that each learns from.

Clients tell what their models say of inputs that all have (`logits`); the server returns a mean of
their probabilities over the clients that mean the same by the classes (see
`fedmoe.insight.clusters`) or over the federation; clients learn it besides their own samples, as
far as these bear it out (`fedmoe.training.trust`). After FedMD (Li and Wang, arXiv 1910.03581) and
DS-FL (Itahara et al., arXiv 2008.06180), which sharpens the mean. With p_kso what client k says of
input s,

    w_ko = min(1, O mean_s p_kso),    q_so = sum_k w_ko p_kso / sum_k w_ko,
    label_so = q_so^(1 / T) / sum_o' q_so'^(1 / T).

Deviations. A client's word on a class counts as far as it ever says the class: under label skew,
who has never seen a class takes its samples for others (both papers: w = 1). Probabilities are
averaged, not FedMD's scores, whose mean is right much less often under label skew. DS-FL's softmax
of q / T makes even a unanimous label soft; a power of q leaves it as it is. Both papers learn
public and own samples in turn; here they make one loss, a mean. Labels are told when new answers
have come, and stay until then.

A client weighs 1 in a class at most, whatever it says: a row of probabilities sums to 1, or it is
refused. So M liars weigh no more than M honest clients that have the class, where in a mean of
logits a single one could decide; and labels that contradict a client's own samples weigh nothing
there. Clients of too few samples tell zeros, and are left out; whoever is in no cluster, or in one
alone, is told nothing.

Letters: K clients, S public inputs, O classes.
"""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe.insight.guidance import Guidance
from fedmoe.insight.memory import Memory
from fedmoe.insight.policies.base import NOTHING, Policy
from fedmoe.insight.policies.clustering import CLUSTERED_BY, clusters_in, of_clients
from fedmoe.schema import DistillationPolicyConfig

Doubles = NDArray[np.float64]
_TINY = 1e-300
_FEWEST = 2  # clients behind a label: of one alone it says nothing new, and tells what it said


class Distillation(Policy):
    """The soft labels of a client's cluster, or of the federation."""

    name = "distillation"

    def __init__(self, config: DistillationPolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.reads = ("logits", *(CLUSTERED_BY if config.of == "cluster" else ()))
        self._advice: dict[int, Guidance] = {}
        self._cluster_of: dict[int, int] = {}
        self._learned: tuple[object, ...] = ()

    @override
    def learn(self, memory: Memory, round: int) -> None:
        """Average, if any client has told new answers."""
        if self._learned == (revision := memory.revision("logits")):
            return
        self._learned = revision
        clients, told = memory.collect("logits")
        if not len(clients):
            return
        said_KSO = told["logits"].astype(np.float64)
        answers = said_KSO.any(axis=(1, 2))
        clients, probs_KSO = clients[answers], np.exp(said_KSO[answers])
        label_K = self._clusters(memory, clients)
        self._cluster_of = dict(zip(clients.tolist(), label_K.tolist(), strict=True))
        sizes_G = np.bincount(label_K[label_K >= 0])
        averaged = np.flatnonzero(sizes_G >= _FEWEST).tolist()
        self._advice = {
            cluster: self._advice.get(cluster, NOTHING).with_parts(
                {
                    "soft_labels": self._labels(probs_KSO[label_K == cluster]),
                    "soft_weight": np.array(self.config.strength, dtype=np.float32),
                }
            )
            for cluster in averaged
        }
        self.decisions = {
            "clients": len(clients), "clusters": sizes_G.tolist(),
            "certainty": [
                float(self._advice[cluster].parts["soft_labels"].max(axis=1).mean())
                for cluster in averaged
            ],
            "reason": f"new answers of {len(clients)} clients, none of which weighs more than 1",
        }  # fmt: skip

    def _clusters(self, memory: Memory, clients: NDArray[np.int64]) -> NDArray[np.int64]:
        """(K,) from 0; -1 for who is in none."""
        if self.config.of == "federation":
            return np.zeros(len(clients), dtype=np.int64)
        found_clients, found = clusters_in(memory)
        return of_clients(clients, found_clients, found.label_K, -1)

    def _labels(self, probs_KSO: Doubles) -> NDArray[np.float32]:
        """(S, O) what some clients say on average, sharpened."""
        weight_KO = np.minimum(1, probs_KSO.shape[2] * probs_KSO.mean(axis=1))
        # A class that nobody ever says is nobody's answer.
        total_O = np.maximum(weight_KO.sum(axis=0), _TINY)
        mean_SO = np.einsum("ko,kso->so", weight_KO, probs_KSO) / total_O
        # The largest is made 1 first: a power of what is small may be no number any more.
        largest_S1 = np.maximum(mean_SO.max(axis=1, keepdims=True), _TINY)
        sharp_SO = (mean_SO / largest_S1) ** (1 / self.config.temperature)
        labels_SO: Doubles = sharp_SO / sharp_SO.sum(axis=1, keepdims=True)
        return labels_SO.astype(np.float32)

    @override
    def advise(self, client_id: int) -> Guidance:
        default = 0 if self.config.of == "federation" else -1
        return self._advice.get(self._cluster_of.get(client_id, default), NOTHING)
