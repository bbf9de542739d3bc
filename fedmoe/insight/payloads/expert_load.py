"""Expert load: how a client's mixture uses its experts, in 2 E numbers.

The share of the samples' routing slots that goes to each expert, and the mean of the router's
probabilities: what Switch's load-balancing loss is made of (arXiv 2101.03961, equations 5 and 6).
The exchange of loads between clients (`fedmoe.clients.load`) has the same numbers.

What it tells: of which kinds, as far as experts stand for kinds, a client's samples are. A client
with fewer than `insight.min_count` samples tells zeros.

Letters: C clients, E experts.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedmoe.insight.payloads.base import Payload, Shapes, Sources, enough


class ExpertLoad(Payload):
    """`expert_load` (E,) and `expert_importance` (E,), each of which sums to 1."""

    name = "expert_load"
    of_data = False

    @property
    @override
    def fits(self) -> bool:
        return self.facts.num_experts is not None

    @property
    @override
    def shapes(self) -> Shapes:
        experts = self.facts.num_experts or 0
        return {"expert_load": (experts,), "expert_importance": (experts,)}

    @override
    def make(self, sources: Sources) -> dict[str, Tensor]:
        load_CE, importance_CE = sources.load()
        told = {"expert_load": load_CE, "expert_importance": importance_CE}
        return {n: enough(sources, self.facts.config.min_count, a) for n, a in told.items()}

    @override
    def implausible(
        self, arrays: Mapping[str, NDArray[Any]], num_examples_C: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Shares below 0, or that do not sum to 1; anything of too few samples."""
        told_C = num_examples_C >= self.facts.config.min_count
        bad_C = np.full(len(num_examples_C), False)
        for name in self.shapes:
            share_CE = arrays[name].astype(np.float64)
            bad_C |= (share_CE < 0).any(axis=1) | (np.abs(share_CE.sum(axis=1) - told_C) > 1e-3)
        return bad_C
