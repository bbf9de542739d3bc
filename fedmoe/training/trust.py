"""How far a client's own samples bear out what it is told: class prototypes, or soft labels.

Letters: C clients, n most samples of a client, S public inputs, D features, O classes.
"""

import torch
from torch import Tensor


def prototype_trust(
    x_CnD: Tensor, y_Cn: Tensor, real_Cn: Tensor, prototypes_COD: Tensor, known_CO: Tensor
) -> Tensor:
    """Squared chance-corrected accuracy of the nearest prototype on a client's own samples.

    A federation whose clients name classes differently, or a lying member of it, yields
    prototypes that contradict a client's data; rehearsing them would do harm. With accuracy a
    and O classes the trust is max(0, (a - 1/O) / (1 - 1/O))^2: 1 where the prototypes classify
    every sample rightly, 0 at chance or worse.

    Args:
        x_CnD: the clients' training inputs.
        y_Cn: their classes.
        real_Cn: which samples are not padding.
        prototypes_COD: what each client was told.
        known_CO: which classes have a prototype.

    Returns:
        (C,) in [0, 1].
    """
    distance_CnO = torch.cdist(x_CnD, prototypes_COD)
    distance_CnO = distance_CnO.masked_fill(~known_CO.unsqueeze(1), torch.inf)
    return _trust(distance_CnO.argmin(dim=-1), y_Cn, real_Cn, known_CO.shape[1])


def label_trust(
    x_CnD: Tensor, y_Cn: Tensor, real_Cn: Tensor, public_SD: Tensor, label_CSO: Tensor
) -> Tensor:
    """The same for soft labels of public inputs: accuracy of the likeliest class of the nearest.

    Inputs that are unlike a client's own have neighbours that say nothing, and earn no trust.

    Args:
        x_CnD: the clients' training inputs.
        y_Cn: their classes.
        real_Cn: which samples are not padding.
        public_SD: the public inputs.
        label_CSO: the soft labels that each client was told.

    Returns:
        (C,) in [0, 1].
    """
    nearest_Cn = torch.cdist(x_CnD, public_SD).argmin(dim=-1)
    said_Cn = label_CSO.argmax(dim=-1).gather(1, nearest_Cn)
    return _trust(said_Cn, y_Cn, real_Cn, label_CSO.shape[2])


def _trust(said_Cn: Tensor, y_Cn: Tensor, real_Cn: Tensor, classes: int) -> Tensor:
    right_Cn = (said_Cn == y_Cn) & real_Cn
    accuracy_C = right_Cn.sum(dim=1) / real_Cn.sum(dim=1).clamp_min(1)
    chance = 1 / classes
    return ((accuracy_C - chance) / (1 - chance)).clamp_min(0).square()
