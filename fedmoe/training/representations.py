"""What a model makes of each class: sums of representations.

Letters: C clients, n most samples of a client, F width of the representation, O classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmoe.data.federation import Ints
from fedmoe.models.base import Parameters, stacked_forward
from fedmoe.training.chunks import sample_chunks
from fedmoe.training.pool import Pool
from fedmoe.training.terms import take


def class_sums(
    x_CnF: Tensor, y_Cn: Tensor, real_Cn: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Sum and number of the vectors of each class.

    Args:
        x_CnF: vectors.
        y_Cn: their classes.
        real_Cn: which of them are not padding.
        num_classes: O.

    Returns:
        (C, O, F) and (C, O).
    """
    real_Cn1 = real_Cn.unsqueeze(-1)
    member_CnO = functional.one_hot(y_Cn, num_classes).to(x_CnF) * real_Cn1
    # Padding is somebody else's sample, and may hold anything: 0 times NaN is not 0.
    return torch.bmm(member_CnO.mT, x_CnF.where(real_Cn1, 0.0)), member_CnO.sum(dim=1)


@torch.no_grad()
def representation_sums(
    model: nn.Module,
    pool: Pool,
    params: Parameters,
    rows_Cn: Ints,
    count_C: Ints,
    *,
    num_classes: int,
    cohort_size: int,
) -> tuple[Tensor, Tensor]:
    """Sum and number of the representations of each class, by each client's own model.

    Args:
        model: the architecture; put into evaluation mode (no dropout).
        pool: where the rows lie, and on which device to compute.
        params: parameters, client axis first.
        rows_Cn: each client's rows, padded on the right.
        count_C: how many of them are real, 1 or more.
        num_classes: O.
        cohort_size: most clients stacked at once.

    Returns:
        (C, O, F) and (C, O).
    """
    forward = stacked_forward(model.eval())
    order, parts = list[Tensor](), list[tuple[Tensor, Tensor]]()
    for chosen, longest in sample_chunks(params, pool, count_C, cohort_size):
        index = torch.from_numpy(chosen).to(pool.device)
        x, y_Cn, real_Cn = pool.padded(rows_Cn[chosen, :longest], count_C[chosen])
        features = forward(take(params, index), x).features
        order.append(index)
        parts.append(class_sums(features, y_Cn, real_Cn, num_classes))
    back = torch.cat(order).argsort()
    sums, counts = (torch.cat(column).index_select(0, back) for column in zip(*parts, strict=True))
    return sums, counts
