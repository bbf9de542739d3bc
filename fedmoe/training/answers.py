"""What many models say of the same inputs.

Letters: C clients, S inputs, D features, O outputs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedmoe.models.base import stacked_forward
from fedmoe.training.chunks import capacity, even_chunks
from fedmoe.training.pool import Pool


@torch.no_grad()
def answer_all(
    model: nn.Module, params: Mapping[str, Tensor], x_SD: Tensor, cohort_size: int
) -> Tensor:
    """Logits or predictions, (C, S, O), of each client's model.

    Args:
        model: the architecture; put into evaluation mode (no dropout).
        params: parameters, client axis first.
        x_SD: inputs.
        cohort_size: most clients stacked at once.
    """
    forward, clients = stacked_forward(model.eval()), len(next(iter(params.values())))
    most = capacity(params, Pool(x_SD, x_SD), len(x_SD), cohort_size)
    said = []
    for chunk in even_chunks(clients, most):
        own = {name: value[chunk] for name, value in params.items()}
        x_CSD = x_SD.expand(len(next(iter(own.values()))), *x_SD.shape)
        said.append(forward(own, x_CSD).y)
    return torch.cat(said)
