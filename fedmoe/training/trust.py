"""How far a client's own samples bear out what it is told of the classes.

Letters: C clients, n most samples of a client, S public inputs, D features, O classes.
"""

import torch
from torch import Tensor


def chance_corrected(guess_Cn: Tensor, y_Cn: Tensor, real_Cn: Tensor, num_classes: int) -> Tensor:
    """Squared chance-corrected accuracy of guesses of the classes of a client's own samples.

    A federation whose clients name classes differently, or a lying member of it, yields
    descriptions of classes that contradict a client's data; rehearsing them would do harm. With
    accuracy a and O classes the trust is max(0, (a - 1/O) / (1 - 1/O))^2: 1 where every sample is
    classified rightly, 0 at chance or worse.

    Args:
        guess_Cn: the classes as guessed.
        y_Cn: the classes.
        real_Cn: which samples are not padding.
        num_classes: O.

    Returns:
        (C,) in [0, 1].
    """
    right_Cn = (guess_Cn == y_Cn) & real_Cn
    accuracy_C = right_Cn.sum(dim=1) / real_Cn.sum(dim=1).clamp_min(1)
    chance = 1 / num_classes
    return ((accuracy_C - chance) / (1 - chance)).clamp_min(0).square()


def prototype_trust(
    x_CnD: Tensor, y_Cn: Tensor, real_Cn: Tensor, prototypes_COD: Tensor, known_CO: Tensor
) -> Tensor:
    """`chance_corrected` of the nearest prototype.

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
    return chance_corrected(distance_CnO.argmin(dim=-1), y_Cn, real_Cn, known_CO.shape[1])


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
    return chance_corrected(said_Cn, y_Cn, real_Cn, label_CSO.shape[2])
