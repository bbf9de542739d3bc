"""Per-sample losses.

Letters: O outputs.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from fedmoe.data.federation import Task

SampleLoss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(y: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy in nats: logits (..., O) and classes (...) to (...)."""
    flat = functional.cross_entropy(y.flatten(0, -2), target.flatten(), reduction="none")
    return flat.view(target.shape)


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
