"""Two ways to the gradient of a step: the model's written derivative, or autograd.

Both give the same numbers. The written way is for models and terms that know their gradients;
autograd is for everything else.

Letters: A clients active at a step, B batch, O outputs, E experts, F width of the representation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from fedmoe.data.federation import Task
from fedmoe.models.base import Forward, Parameters, stacked_forward
from fedmoe.models.router_losses import FederationLoad, RouterLosses
from fedmoe.models.routing import StepContext
from fedmoe.models.written import (
    Kernel,
    RepresentingPass,
    WrittenModule,
    is_written,
    kernel_of,
)
from fedmoe.training.gradients import Found, Gradient, Written
from fedmoe.training.losses import SampleLoss, WrittenLoss, sample_loss, written_loss
from fedmoe.training.terms import DrawingTerm, Step, Term, WrittenTerm


class Batch(NamedTuple):
    """What the active clients see at one step.

    Attributes:
        x: (A, B, D) features.
        target: (A, B) classes or (A, B, O) targets.
        weight: (A, B) each sample's share of its batch, 0 for padding.
        key: (A,) int64 keys for a router's draws, if it makes any.
        federation: how the federation used its experts, if the clients know.
    """

    x: Tensor
    target: Tensor
    weight: Tensor
    key: Tensor | None
    federation: FederationLoad | None = None

    @property
    def context(self) -> StepContext:
        """What a router may know of the step."""
        return StepContext(self.weight, self.key)


class Differentiate(Protocol):
    """A way to the gradient."""

    def __call__(self, params: Parameters, batch: Batch) -> tuple[Tensor, Gradient]:
        """(A,) mean sample losses, without terms, and the gradient of everything."""
        ...


def differentiation(
    model: nn.Module, task: Task, terms: Sequence[Term], router_losses: RouterLosses
) -> Differentiate:
    """The quickest way that the model and the terms allow; puts modules into training mode."""
    kernel = kernel_of(model)
    known = [cast(WrittenTerm, t) for t in terms if is_written(t, "add_gradient", "__call__")]
    drawing = [cast(DrawingTerm, t) for t in terms if is_written(t, "draw", "__call__")]
    gives_features = isinstance(model, WrittenModule) and model.gives_features
    if (
        kernel is not None
        and len(known) + len(drawing) == len(terms)
        and (gives_features or not drawing)
    ):
        return ByHand(kernel, written_loss(task), known, router_losses, drawing)
    return ByAutograd(stacked_forward(model.train()), sample_loss(task), terms, router_losses)


@dataclass(frozen=True)
class ByHand:
    """The written derivative of the model, the loss and the terms."""

    kernel: Kernel
    loss: WrittenLoss
    terms: Sequence[WrittenTerm]
    router_losses: RouterLosses
    drawing: Sequence[DrawingTerm] = ()

    def __call__(self, params: Parameters, batch: Batch) -> tuple[Tensor, Gradient]:
        """See `Differentiate`."""
        run = self.kernel(params, batch.x, batch.context)
        loss_AB, y_grad_AOB = self.loss(run.y_COB, batch.target, batch.weight)
        logits_grad_AEB = None
        if self.router_losses and run.routing is not None:
            logits_grad_AEB = self.router_losses.logits_gradient(
                run.routing, batch.weight, batch.federation
            )
        features_grad_AFB = None
        for drawn in self.drawing:
            features_AFB = cast(RepresentingPass, run).features_CFB
            own_AFB = drawn.draw(features_AFB, batch.target, batch.weight)
            features_grad_AFB = (
                own_AFB if features_grad_AFB is None else features_grad_AFB + own_AFB
            )
        gradient = Written(params, run, y_grad_AOB, logits_grad_AEB, features_grad_AFB)
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
    router_losses: RouterLosses

    def __call__(self, params: Parameters, batch: Batch) -> tuple[Tensor, Gradient]:
        """See `Differentiate`."""
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        with torch.enable_grad():
            output = self.forward(leaves, batch.x, batch.context)
            sample_A = (self.loss(output.y, batch.target) * batch.weight).sum(dim=1)
            total_A = sample_A
            if self.router_losses and output.routing is not None:
                total_A = total_A + self.router_losses.value(
                    output.routing, batch.weight, batch.federation
                )
            for term in self.terms:
                step = Step(self.forward, leaves, output, batch.target, batch.weight)
                total_A = total_A + term(step)
            # A parameter that the output does not depend on has gradient zero.
            found = torch.autograd.grad(
                total_A.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        return sample_A.detach(), Found(dict(zip(leaves, found, strict=True)))
