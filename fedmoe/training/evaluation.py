"""Evaluation of many clients at once, each with a model of its own or all with the same.

Letters: C clients, n samples, O outputs.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedmoe.data.federation import Ints, Task
from fedmoe.models.base import Parameters, stacked_forward
from fedmoe.training.losses import sample_loss
from fedmoe.training.pool import Pool


class Evaluation(NamedTuple):
    """Scores of each client on its own samples; zero where it has none.

    Attributes:
        count_C: samples.
        loss_C: mean sample loss (cross-entropy in nats, or squared error).
        accuracy_C: share of correct classes; `None` for regression.
        uncertainty_C: predictive uncertainty: mean entropy of the predicted classes over
            log O, in [0, 1]; for regression the root mean squared error.
    """

    count_C: Ints
    loss_C: Tensor
    accuracy_C: Tensor | None
    uncertainty_C: Tensor


@torch.no_grad()
def evaluate_cohort(
    model: nn.Module,
    task: Task,
    pool: Pool,
    params: Parameters,
    rows_Cn: Ints,
    count_C: Ints,
    cohort_size: int,
) -> Evaluation:
    """Score each client's model on its own rows.

    Args:
        model: the architecture; put into evaluation mode (no dropout).
        task: fixes the loss and whether there is an accuracy.
        pool: where the rows lie.
        params: parameters, client axis first; an axis of length 1 is one model for everybody.
        rows_Cn: each client's rows, padded on the right.
        count_C: how many of them are real.
        cohort_size: most clients stacked at once.
    """
    forward = stacked_forward(model.eval())
    shared = next(iter(params.values())).shape[0] == 1
    order = np.argsort(-count_C, kind="stable")
    totals = torch.zeros(len(count_C), 3)
    for start in range(0, len(order), cohort_size):
        chunk = order[start : start + cohort_size]
        index = torch.from_numpy(chunk)
        most = int(count_C[chunk].max(initial=0))
        if not most:
            continue
        x, target, real = pool.padded(rows_Cn[chunk, :most], count_C[chunk])
        own = params if shared else {name: value[index] for name, value in params.items()}
        output = forward(own, x.flatten(0, 1).unsqueeze(0) if shared else x)
        y = output.y.reshape(*real.shape, -1)
        scores = _sample_scores(task, y, target)
        totals[index] = (scores * real.unsqueeze(-1)).sum(dim=1)
    loss_C, correct_C, uncertainty_C = (totals / _at_least_one(count_C)).unbind(dim=1)
    if task.kind == "regression":
        return Evaluation(count_C, loss_C, None, loss_C.sqrt())
    return Evaluation(count_C, loss_C, correct_C, uncertainty_C)


def _sample_scores(task: Task, y: Tensor, target: Tensor) -> Tensor:
    """(C, n, 3): loss, correct, uncertainty of each sample."""
    loss = sample_loss(task)(y, target)
    if task.kind == "regression":
        return torch.stack([loss, torch.zeros_like(loss), loss], dim=-1)
    log_probs = y.log_softmax(dim=-1)
    # A task of one class is certain; rounding must not pass 1.
    most = np.log(max(y.shape[-1], 2))
    entropy = (-(log_probs.exp() * log_probs).sum(dim=-1) / most).clamp_max(1.0)
    return torch.stack([loss, (y.argmax(dim=-1) == target).float(), entropy], dim=-1)


def _at_least_one(count_C: Ints) -> Tensor:
    return torch.from_numpy(np.maximum(count_C, 1)).unsqueeze(1).float()
