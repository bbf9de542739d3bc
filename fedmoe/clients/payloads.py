"""What an insight carries besides its numbers, computed for a cohort at once.

Letters: C clients, n most samples of a client, D features, P = D + 1 coefficients, O outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedmoe.clients.experiment import Experiment
from fedmoe.models.linear import Linear
from fedmoe.training.pool import Samples
from fedmoe.training.representations import class_sums


def make_payloads(
    experiment: Experiment, names: Sequence[str], samples: Samples, prototype_min_count: int
) -> dict[str, Tensor]:
    """The clients' payloads, C in front; what does not fit the task or the model is left out."""
    task = experiment.data.task
    x_CnD, y_Cn, real_Cn = samples.padded()
    stacked: dict[str, Tensor] = {}
    if "prototypes" in names and task.kind == "classification":
        stacked |= prototypes(x_CnD, y_Cn, real_Cn, task.num_outputs, prototype_min_count)
    linear = isinstance(experiment.model, Linear)
    if "statistics" in names and task.kind == "regression" and linear:
        stacked |= statistics(x_CnD, y_Cn, real_Cn)
    return stacked


def prototypes(
    x_CnD: Tensor, y_Cn: Tensor, real_Cn: Tensor, num_classes: int, min_count: int
) -> dict[str, Tensor]:
    """Sum and count of the inputs of each class; classes with few samples say nothing.

    Args:
        x_CnD: inputs.
        y_Cn: classes.
        real_Cn: which samples are not padding.
        num_classes: O.
        min_count: fewest samples of a class that may be told.
    """
    sum_COD, count_CO = class_sums(x_CnD, y_Cn, real_Cn, num_classes)
    told_CO = (count_CO >= min_count).float()
    return {
        "prototype_sum": sum_COD * told_CO.unsqueeze(-1),
        "prototype_count": count_CO * told_CO,
    }


def statistics(x_CnD: Tensor, y_CnO: Tensor, real_Cn: Tensor) -> dict[str, Tensor]:
    """Sufficient statistics of a linear regression with bias: X'X, X'Y and the squares of Y."""
    real = real_Cn.unsqueeze(-1).float()
    x_CnP = torch.cat([x_CnD, torch.ones_like(x_CnD[..., :1])], dim=-1) * real
    y_CnO = y_CnO * real
    return {
        "statistics_xx": torch.bmm(x_CnP.mT, x_CnP),
        "statistics_xy": torch.bmm(x_CnP.mT, y_CnO),
        "statistics_yy": y_CnO.square().sum(dim=1),
    }
