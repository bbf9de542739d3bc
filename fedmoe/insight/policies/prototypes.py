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

What it tells: a class mean over at least `strategy.prototype_min_count` samples, and that the
client has the class.

Letters: O classes, D features.
"""

from dataclasses import replace

import numpy as np

from fedmoe.insight.guidance import Guidance
from fedmoe.insight.memory import Memory
from fedmoe.schema import MetaLearnerConfig


def apply(memory: Memory, config: MetaLearnerConfig, guidance: Guidance) -> Guidance:
    """Add the federation's class means, if any client has sent some."""
    payloads = [one.payload for one in memory.current() if "prototype_sum" in one.payload]
    if not payloads:
        return guidance
    sum_OD = np.sum([one["prototype_sum"] for one in payloads], axis=0, dtype=np.float64)
    count_O = np.sum([one["prototype_count"] for one in payloads], axis=0, dtype=np.float64)
    known_O = count_O > 0
    mean_OD = sum_OD / np.maximum(count_O, 1)[:, None]
    weight_O = np.asarray(config.prototype_strength * known_O / max(int(known_O.sum()), 1))
    return replace(
        guidance,
        prototypes=mean_OD.astype(np.float32),
        prototype_weight=weight_O.astype(np.float32),
    )
