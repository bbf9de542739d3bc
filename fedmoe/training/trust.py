"""How far a client's own samples bear out the class prototypes that it is told to rehearse.

Letters: C clients, n most samples of a client, D features, O classes.
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
    right_Cn = (distance_CnO.argmin(dim=-1) == y_Cn) & real_Cn
    accuracy_C = right_Cn.sum(dim=1) / real_Cn.sum(dim=1).clamp_min(1)
    chance = 1 / known_CO.shape[1]
    return ((accuracy_C - chance) / (1 - chance)).clamp_min(0).square()
