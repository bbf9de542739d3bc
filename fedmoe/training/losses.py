"""Per-sample losses, and their gradients where nobody asks autograd.

Letters: C clients, B batch, O outputs.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from fedmoe.data.federation import Task

# A softmax over fewer classes than a register holds goes one by one, unless samples lie last.
_VECTOR = 16

SampleLoss = Callable[[Tensor, Tensor], Tensor]
WrittenLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def cross_entropy(y: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy in nats: logits (..., O) and classes (...) to (...)."""
    logits, classes = y.flatten(0, -2), target.flatten()
    if y.shape[-1] >= _VECTOR:
        return functional.cross_entropy(logits, classes, reduction="none").view(target.shape)
    log_probs = logits.t().log_softmax(dim=0)
    return -log_probs.gather(0, classes.unsqueeze(0)).view(target.shape)


def soft_cross_entropy(y: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy in nats: logits (..., O) and probabilities (..., O) to (...)."""
    return -(y.log_softmax(dim=-1) * target).sum(dim=-1)


def squared_error(y: Tensor, target: Tensor) -> Tensor:
    """Squared error, mean over outputs: (..., O) and (..., O) to (...).

    Raises:
        ValueError: the shapes differ; they could broadcast to a wrong loss.
    """
    if y.shape != target.shape:
        raise ValueError(f"predictions are {tuple(y.shape)}, but targets {tuple(target.shape)}")
    return (y - target).square().mean(dim=-1)


def sample_loss(task: Task) -> SampleLoss:
    """The loss that belongs to a task."""
    return cross_entropy if task.kind == "classification" else squared_error


def cross_entropy_gradient(
    y_COB: Tensor, target_CB: Tensor, weight_CB: Tensor
) -> tuple[Tensor, Tensor]:
    """`cross_entropy` of logits whose classes lie on axis 1, and its gradient.

    Args:
        y_COB: logits.
        target_CB: classes.
        weight_CB: each sample's share of the total.

    Returns:
        (C, B) losses, and (C, O, B) the gradient of their weighted total.
    """
    log_probs_COB = y_COB.log_softmax(dim=1)
    target_C1B, weight_C1B = target_CB.unsqueeze(1), weight_CB.unsqueeze(1)
    loss_CB = log_probs_COB.gather(1, target_C1B).squeeze(1).neg_()
    gradient_COB = log_probs_COB.exp_().mul_(weight_C1B)
    return loss_CB, gradient_COB.scatter_add_(1, target_C1B, -weight_C1B)


def squared_error_gradient(
    y_COB: Tensor, target_CBO: Tensor, weight_CB: Tensor
) -> tuple[Tensor, Tensor]:
    """`squared_error` of predictions whose outputs lie on axis 1; see `cross_entropy_gradient`.

    Raises:
        ValueError: the shapes differ.
    """
    if y_COB.mT.shape != target_CBO.shape:
        shape = tuple(y_COB.mT.shape)
        raise ValueError(f"predictions are {shape}, but targets {tuple(target_CBO.shape)}")
    away_COB = y_COB - target_CBO.mT
    loss_CB = away_COB.square().mean(dim=1)
    return loss_CB, away_COB.mul_(weight_CB.mul(2 / y_COB.shape[1]).unsqueeze(1))


def written_loss(task: Task) -> WrittenLoss:
    """The loss that belongs to a task, with its gradient."""
    return cross_entropy_gradient if task.kind == "classification" else squared_error_gradient
