"""Learning from soft labels of public inputs, besides one's own samples.

Letters: C clients still active (A of all), S public inputs, M of them that a client looks at in a
round, B batch, D features, O classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedmoe.data.federation import Ints
from fedmoe.models.base import Parameters
from fedmoe.models.written import Kernel
from fedmoe.training.batches import hash_keys
from fedmoe.training.terms import Step, take_rows

_PUBLIC = 7_919  # sets these draws apart from those of a client's batches


@dataclass(frozen=True)
class Distillation:
    """Cross-entropy of the model to soft labels, a mean over the inputs that a client looks at.

    Hinton et al. (arXiv 1503.02531) at temperature 1: what sharpens the labels has been done by
    whoever made them; see `fedmoe.insight.policies.distillation`.

    Attributes:
        public_SD: the public inputs.
        index_CM: which of them each client looks at.
        label_CMO: their soft labels, which sum to 1 over the classes.
        weight_C: of the mean cross-entropy; 0 for a client without soft labels.
    """

    public_SD: Tensor
    index_CM: Tensor
    label_CMO: Tensor
    weight_C: Tensor

    @classmethod
    def of(
        cls, public_SD: Tensor, index_CM: Tensor, label_CSO: Tensor, weight_C: Tensor
    ) -> "Distillation":
        """From the soft labels of all public inputs, (C, S, O)."""
        index_CMO = index_CM.unsqueeze(2).expand(*index_CM.shape, label_CSO.shape[2])
        return cls(public_SD, index_CM, label_CSO.gather(1, index_CMO), weight_C)

    def __call__(self, step: Step) -> Tensor:
        """See `Term`."""
        clients = step.clients
        logits_CMO = step.forward(step.params, self.public_SD[self.index_CM[:clients]]).y
        gain_CMO = self.label_CMO[:clients] * logits_CMO.log_softmax(dim=2)
        return -self.weight_C[:clients] * gain_CMO.sum(dim=2).mean(dim=1)

    def add_gradient(self, kernel: Kernel, params: Mapping[str, Tensor], into: Parameters) -> None:
        """See `WrittenTerm`."""
        clients = len(next(iter(params.values())))
        run = kernel(params, self.public_SD[self.index_CM[:clients]])
        y_grad_COM = run.y_COB.softmax(dim=1) - self.label_CMO[:clients].mT
        y_grad_COM *= (self.weight_C[:clients] / run.y_COB.shape[2]).view(-1, 1, 1)
        run.backward(y_grad_COM, None, into, 1.0)

    def take(self, index: Tensor) -> "Distillation":
        """See `Term`."""
        own = (self.index_CM, self.label_CMO, self.weight_C)
        return Distillation(self.public_SD.to(index.device), *(take_rows(v, index) for v in own))


def looked_at(seed: int, round: int, clients: Ints, inputs: int, most: int) -> Ints:
    """Which public inputs each client looks at in a round: (C, M), drawn without replacement.

    The draw is a hash of (seed, client, round, input): the same for a client in any cohort.

    Args:
        seed: of the experiment.
        round: of the federation.
        clients: (C,) ids.
        inputs: S.
        most: M, if there are as many.
    """
    if most >= inputs:
        return np.broadcast_to(np.arange(inputs), (len(clients), inputs)).copy()
    keys_CS = hash_keys(seed, _PUBLIC, clients[:, None], round, np.arange(inputs)[None])
    return keys_CS.argsort(axis=1, kind="stable")[:, :most]
