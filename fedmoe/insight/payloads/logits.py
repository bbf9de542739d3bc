"""Logits: what a client's model says of public inputs that all have.

Log-probabilities of the classes, or predictions for regression. FedMD (arXiv 1910.03581) averages
its clients' scores on a public data set, and each learns from the mean; FedDF (arXiv 2006.07242)
lets the server do so. Log-probabilities are scores without their arbitrary constant, so that those
of models that were never averaged can be compared. `insight.public` says what the inputs are, the
same for all and in the same order; told in every `insight.every`-th round.

What it tells: the client's model, as far as its answers do. As many inputs as features and one more
give a linear model away, but for a constant: then all is known that is to be known from its
weights. A model fits samples of its own better than others, so that answers may betray
that a public input, or one much like it, was trained on. A client with fewer than
`insight.min_count` samples tells zeros.

Letters: C clients, S public inputs, O outputs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedmoe.insight.payloads.base import Payload, Shapes, Sources, enough


class Logits(Payload):
    """`logits` (S, O)."""

    name = "logits"
    of_data = False

    @property
    @override
    def shapes(self) -> Shapes:
        return {"logits": (self.facts.config.public_samples, self.facts.task.num_outputs)}

    @override
    def due(self, round: int) -> bool:
        return round % self.facts.config.every == 0

    @override
    def make(self, sources: Sources) -> dict[str, Tensor]:
        said_CSO = sources.answers()
        if self.facts.task.kind == "classification":
            said_CSO = said_CSO.log_softmax(dim=2)
        return {"logits": enough(sources, self.facts.config.min_count, said_CSO)}

    @override
    def implausible(
        self, arrays: Mapping[str, NDArray[Any]], num_examples_C: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Probabilities that do not sum to 1; anything of too few samples."""
        said_CSO = arrays["logits"].astype(np.float64)
        few_C = num_examples_C < self.facts.config.min_count
        bad_C = few_C & (said_CSO != 0).any(axis=(1, 2))
        if self.facts.task.kind == "classification":
            with np.errstate(over="ignore"):
                sum_CS = np.exp(said_CSO).sum(axis=2)
            bad_C |= ~few_C & ~(np.abs(sum_CS - 1) <= 1e-3).all(axis=1)
        return np.asarray(bad_C)
