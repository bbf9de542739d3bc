"""Evaluation of many clients at once, each with a model of its own or all with the same.

Letters: C clients, n most samples of a client, B batch, O outputs.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedmoe.data.federation import Ints, Task
from fedmoe.models.base import Parameters, stacked_forward
from fedmoe.models.moe import MixtureOfExperts, Said
from fedmoe.models.written import kernel_of
from fedmoe.training.calibration import BINS, calibration_error, calibration_gaps
from fedmoe.training.chunks import sample_chunks
from fedmoe.training.losses import sample_loss
from fedmoe.training.pool import Pool
from fedmoe.training.terms import take
from fedmoe.training.watch import RouterWatch


class Evaluation(NamedTuple):
    """Scores of each client on its own samples; zero where it has none.

    Attributes:
        count_C: samples.
        loss_C: mean sample loss (cross-entropy in nats, or squared error).
        accuracy_C: share of correct classes; `None` for regression.
        uncertainty_C: predictive uncertainty: mean entropy of the predicted classes over
            log O, in [0, 1]; for regression the root mean squared error.
        calibration_error_C: see `fedmoe.training.calibration`; 0 for regression, and where it
            was not asked for.
    """

    count_C: Ints
    loss_C: Tensor
    accuracy_C: Tensor | None
    uncertainty_C: Tensor
    calibration_error_C: Tensor


@torch.no_grad()
def evaluate_cohort(
    model: nn.Module,
    task: Task,
    pool: Pool,
    params: Parameters,
    rows_Cn: Ints,
    count_C: Ints,
    cohort_size: int,
    watch: RouterWatch | None = None,
    calibration: bool = False,
) -> Evaluation:
    """Score each client's model on its own rows.

    Args:
        model: the architecture; put into evaluation mode (no dropout).
        task: fixes the loss and whether there is an accuracy.
        pool: where the rows lie, and on which device to compute.
        params: parameters, client axis first; one of length 1 is the same for everybody.
        rows_Cn: each client's rows, padded on the right.
        count_C: how many of them are real.
        cohort_size: most clients stacked at once.
        watch: is shown what the router does, if there is one.
        calibration: whether to compare confidence with accuracy, which takes time.
    """
    predict = _predictions(model, watch is not None)
    shared = all(len(value) == 1 for value in params.values())
    totals_3C = pool.x_ND.new_zeros(3, len(count_C))
    calibration = calibration and task.kind == "classification"
    gap_CM = totals_3C.new_zeros(len(count_C), BINS if calibration else 0)
    own = {name: value.to(pool.device) for name, value in params.items()}
    if not shared:  # what all have the same may stand beside what is each one's own
        own = {name: p.expand(len(count_C), *p.shape[1:]) for name, p in own.items()}
    for chosen, longest in sample_chunks({} if shared else own, pool, count_C, cohort_size):
        index = torch.from_numpy(chosen).to(pool.device)
        x, target, real_Cn = pool.padded(rows_Cn[chosen, :longest], count_C[chosen])
        if shared:  # one model, one batch
            x, target = x.flatten(0, 1).unsqueeze(0), target.flatten(0, 1).unsqueeze(0)
        said = predict(own if shared else take(own, index), x)
        scores_3Cn = _sample_scores(task, said.y_COB, target).view(3, *real_Cn.shape)
        # Padding is somebody else's sample, and may hold anything: 0 times NaN is not 0.
        totals_3C[:, index] = scores_3Cn.where(real_Cn, 0.0).sum(dim=2)
        if calibration:
            y_COn = _by_client(said.y_COB, real_Cn.shape[1])
            gap_CM[index] = calibration_gaps(y_COn, scores_3Cn[1], real_Cn)
        if watch is not None and said.routing is not None:
            error_Cn = scores_3Cn[0] if task.kind == "regression" else 1 - scores_3Cn[1]
            target = target.view(*real_Cn.shape, *target.shape[2:])
            watch.see(chosen, said.routing, said.answers, target, real_Cn, error_Cn)
    size_C = torch.from_numpy(np.maximum(count_C, 1)).to(totals_3C)
    loss_C, correct_C, uncertainty_C = totals_3C / size_C
    error_C = calibration_error(gap_CM, size_C)
    if task.kind == "regression":
        return Evaluation(count_C, loss_C, None, loss_C.sqrt(), error_C)
    return Evaluation(count_C, loss_C, correct_C, uncertainty_C, error_C)


def _predictions(model: nn.Module, watched: bool) -> Callable[[Parameters, Tensor], Said]:
    """From stacked parameters and (C, B, D) inputs; of a watched mixture with all answers."""
    kernel = kernel_of(model)
    if kernel is not None and not watched:
        return lambda params, x: Said(kernel(params, x).y_COB, None, None)
    if kernel is not None and isinstance(model, MixtureOfExperts):
        return model.said
    forward = stacked_forward(model.eval())

    def by_module(params: Parameters, x: Tensor) -> Said:
        output = forward(params, x)
        return Said(output.y.mT, output.routing, output.answers)

    return by_module


def _by_client(y_COB: Tensor, n: int) -> Tensor:
    """(C, O, n) answers, of clients that were one batch too."""
    y_1OCn = y_COB.reshape(*y_COB.shape[:2], -1, n)
    return y_1OCn.transpose(1, 2).flatten(0, 1)


def _sample_scores(task: Task, y_COB: Tensor, target: Tensor) -> Tensor:
    """(3, C, B): loss, correct, uncertainty of each sample."""
    if task.kind == "regression":
        loss_CB = sample_loss(task)(y_COB.mT, target)
        return torch.stack([loss_CB, torch.zeros_like(loss_CB), loss_CB])
    # Samples last: softmax over a short last axis takes ten times as long.
    log_probs_COB = y_COB.log_softmax(dim=1)
    loss_CB = -log_probs_COB.gather(1, target.unsqueeze(1)).squeeze(1)
    # A task of one class is certain; rounding must not pass 1.
    most = np.log(max(y_COB.shape[1], 2))
    entropy_CB = (-(log_probs_COB.exp() * log_probs_COB).sum(dim=1) / most).clamp_max(1.0)
    best_CB = y_COB.max(dim=1).indices  # the first of equals, as argmax, which is four times slower
    return torch.stack([loss_CB, (best_CB == target).to(loss_CB), entropy_CB])
