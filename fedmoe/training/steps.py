"""Two ways to the gradient of a step: the model's written derivative, or autograd.

Both give the same numbers. The written way is for models and terms that know their gradients;
autograd is for everything else.

Letters: A clients active at a step, B batch, O outputs, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from fedmoe.data.federation import Task
from fedmoe.models.base import Forward, Parameters, stacked_forward
from fedmoe.models.routers import balance_gradient, balance_loss
from fedmoe.models.written import Kernel, is_written, kernel_of
from fedmoe.training.gradients import Found, Gradient, Written
from fedmoe.training.losses import SampleLoss, WrittenLoss, sample_loss, written_loss
from fedmoe.training.terms import Step, Term, WrittenTerm


class Batch(NamedTuple):
    """What the active clients see at one step.

    Attributes:
        x: (A, B, D) features.
        target: (A, B) classes or (A, B, O) targets.
        weight: (A, B) each sample's share of its batch, 0 for padding.
    """

    x: Tensor
    target: Tensor
    weight: Tensor


class Differentiate(Protocol):
    """A way to the gradient."""

    def __call__(self, params: Parameters, batch: Batch) -> tuple[Tensor, Gradient]:
        """(A,) mean sample losses, without terms, and the gradient of everything."""
        ...


def differentiation(
    model: nn.Module, task: Task, terms: Sequence[Term], balance_weight: float
) -> Differentiate:
    """The quickest way that the model and the terms allow; puts modules into training mode."""
    kernel = kernel_of(model)
    if kernel is not None and all(is_written(t, "add_gradient", "__call__") for t in terms):
        known = cast(Sequence[WrittenTerm], terms)
        return ByHand(kernel, written_loss(task), known, balance_weight)
    return ByAutograd(stacked_forward(model.train()), sample_loss(task), terms, balance_weight)


@dataclass(frozen=True)
class ByHand:
    """The written derivative of the model, the loss and the terms."""

    kernel: Kernel
    loss: WrittenLoss
    terms: Sequence[WrittenTerm]
    balance_weight: float

    def __call__(self, params: Parameters, batch: Batch) -> tuple[Tensor, Gradient]:
        """See `Differentiate`."""
        run = self.kernel(params, batch.x)
        loss_AB, y_grad_AOB = self.loss(run.y_COB, batch.target, batch.weight)
        probs_grad_AEB = None
        if self.balance_weight and run.chosen_CEB is not None:
            weight_AB = batch.weight * self.balance_weight
            probs_grad_AEB = balance_gradient(run.chosen_CEB, weight_AB)
        gradient = Written(params, run, y_grad_AOB, probs_grad_AEB)
        sample_A = loss_AB.mul_(batch.weight).sum(dim=1)
        if not self.terms:
            return sample_A, gradient
        found = gradient.tensors()
        for term in self.terms:
            term.add_gradient(self.kernel, params, found)
        return sample_A, Found(found)


@dataclass(frozen=True)
class ByAutograd:
    """Autograd through the model's stacked forward pass and the terms."""

    forward: Forward
    loss: SampleLoss
    terms: Sequence[Term]
    balance_weight: float

    def __call__(self, params: Parameters, batch: Batch) -> tuple[Tensor, Gradient]:
        """See `Differentiate`."""
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        with torch.enable_grad():
            output = self.forward(leaves, batch.x)
            sample_A = (self.loss(output.y, batch.target) * batch.weight).sum(dim=1)
            total_A = sample_A
            if self.balance_weight and output.gate_probs is not None:
                assert output.gate_chosen is not None
                total_A = total_A + self.balance_weight * balance_loss(
                    output.gate_probs, output.gate_chosen, batch.weight
                )
            for term in self.terms:
                step = Step(self.forward, leaves, output, batch.target, batch.weight)
                total_A = total_A + term(step)
            # A parameter that the output does not depend on has gradient zero.
            found = torch.autograd.grad(
                total_A.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        return sample_A.detach(), Found(dict(zip(leaves, found, strict=True)))
