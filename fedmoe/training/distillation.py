"""Learning from soft labels of public inputs, besides one's own samples.

Letters: C clients, S public inputs, M of them that a client looks at in a round, D features, O
classes.
"""

import numpy as np
from torch import Tensor

from fedmoe.data.federation import Ints
from fedmoe.training.batches import hash_keys
from fedmoe.training.terms import Rehearsal

_PUBLIC = 7_919  # sets these draws apart from those of a client's batches


def distillation(
    public_SD: Tensor, index_CM: Tensor, label_CSO: Tensor, weight_C: Tensor
) -> Rehearsal:
    """Cross-entropy of the model to soft labels, a mean over the inputs that a client looks at.

    Hinton et al. (arXiv 1503.02531) at temperature 1: what sharpens the labels has been done by
    whoever made them; see `fedmoe.insight.policies.distillation`.

    Args:
        public_SD: the public inputs.
        index_CM: which of them each client looks at.
        label_CSO: their soft labels, which sum to 1 over the classes.
        weight_C: of the mean cross-entropy; 0 for a client without soft labels.
    """
    index_CMO = index_CM.unsqueeze(2).expand(*index_CM.shape, label_CSO.shape[2])
    weight_CM = (weight_C / index_CM.shape[1]).unsqueeze(1).expand(index_CM.shape)
    return Rehearsal(public_SD[index_CM], label_CSO.gather(1, index_CMO), weight_CM.contiguous())


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
