"""What a strategy or its guidance adds to each client's mean sample loss.

Terms are added to the loss and differentiated, by autograd or by themselves; a prior is a
proximal step of its own.

Letters: C clients still active (A of all), B batch, M inputs rehearsed, O outputs (classes), D
features, F width of the representation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from fedmoe.models.base import Forward, ModelOutput, Parameters
from fedmoe.models.written import Kernel
from fedmoe.training.losses import soft_cross_entropy


def take(tensors: Mapping[str, Tensor], index: Tensor) -> Parameters:
    """The chosen clients of stacked tensors; see `take_rows`."""
    return {name: take_rows(value, index) for name, value in tensors.items()}


def take_rows(value: Tensor, index: Tensor) -> Tensor:
    """The chosen rows, on the device of the index; a view where all rows are one (a broadcast)."""
    if len(value) and value.stride(0) == 0:
        return value[:1].to(index.device).expand(len(index), *value.shape[1:])
    return value.index_select(0, index.to(value.device)).to(index.device)


def copy_rows(value: Tensor, index: Tensor) -> Tensor:
    """The same in memory of its own."""
    rows = take_rows(value, index)
    return rows.clone(memory_format=torch.contiguous_format) if rows.stride(0) == 0 else rows


def take_first(tensors: Parameters, clients: int) -> Parameters:
    """Views of the first clients of stacked tensors."""
    return {name: value[:clients] for name, value in tensors.items()}


class Step(NamedTuple):
    """What a loss term may look at: one step of the clients still active.

    Attributes:
        forward: runs the model for stacked parameters.
        params: the active clients' parameters, client axis first.
        output: their forward pass.
        target: (C, B) classes or (C, B, O) targets.
        weight: (C, B) each sample's share of its batch, 0 for padding.
    """

    forward: Forward
    params: Mapping[str, Tensor]
    output: ModelOutput
    target: Tensor
    weight: Tensor

    @property
    def clients(self) -> int:
        """C: a term cuts its own per-client data to the first C."""
        return len(self.weight)


class Term(Protocol):
    """Something added to the mean sample loss of each client."""

    def __call__(self, step: Step) -> Tensor:
        """One value per active client, (C,)."""
        ...

    def take(self, index: Tensor) -> Self:
        """The same term for the chosen clients, in that order, on the index's device."""
        ...


class WrittenTerm(Term, Protocol):
    """A term that knows its gradient, which serves where the model knows its own."""

    def add_gradient(self, kernel: Kernel, params: Mapping[str, Tensor], into: Parameters) -> None:
        """Add the gradient by the active clients' parameters to `into`."""
        ...


class DrawingTerm(Term, Protocol):
    """A term of the representation alone, which knows its gradient by that."""

    def draw(self, features_CFB: Tensor, target_CB: Tensor, weight_CB: Tensor) -> Tensor:
        """The gradient of the active clients' values by their representation, (C, F, B)."""
        ...


@dataclass(frozen=True)
class Proximal:
    """FedProx: mu / 2 ||w - anchor||^2 (arXiv 1812.06127, equation 2).

    Attributes:
        anchor: the parameters received this round, client axis first.
        mu: strength.
    """

    anchor: Parameters
    mu: float

    def __call__(self, step: Step) -> Tensor:
        """See `Term`."""
        total = step.weight.new_zeros(step.clients)
        for name, value in step.params.items():
            away = value - self.anchor[name][: step.clients]
            total = total + away.square().reshape(step.clients, -1).sum(dim=1)
        return self.mu / 2 * total

    def add_gradient(self, kernel: Kernel, params: Mapping[str, Tensor], into: Parameters) -> None:
        """See `WrittenTerm`: mu (w - anchor)."""
        del kernel
        for name, value in params.items():
            into[name].add_(value - self.anchor[name][: len(value)], alpha=self.mu)

    def take(self, index: Tensor) -> "Proximal":
        """See `Term`."""
        return Proximal(take(self.anchor, index), self.mu)


@dataclass(frozen=True)
class Rehearsal:
    """Cross-entropy of the model on inputs that are none of the client's, as if they were samples.

    See `fedmoe.insight.policies.prototypes` and `.gaussians` for where they come from.

    Attributes:
        inputs: (C, M, D).
        target: (C, M, O) how likely each class is.
        weight: (C, M) of each input; 0 for one that is not there.
    """

    inputs: Tensor
    target: Tensor
    weight: Tensor

    def __call__(self, step: Step) -> Tensor:
        """See `Term`."""
        clients = step.clients
        logits = step.forward(step.params, self.inputs[:clients]).y
        loss_CM = soft_cross_entropy(logits, self.target[:clients])
        return (loss_CM * self.weight[:clients]).sum(dim=1)

    def add_gradient(self, kernel: Kernel, params: Mapping[str, Tensor], into: Parameters) -> None:
        """See `WrittenTerm`."""
        clients = len(next(iter(params.values())))
        run = kernel(params, self.inputs[:clients])
        away_COM = run.y_COB.softmax(dim=1).sub_(self.target[:clients].mT)
        run.backward(away_COM.mul_(self.weight[:clients].unsqueeze(1)), None, into, 1.0)

    def take(self, index: Tensor) -> "Rehearsal":
        """See `Term`."""
        return Rehearsal(*(take_rows(v, index) for v in (self.inputs, self.target, self.weight)))


@dataclass(frozen=True)
class Alignment:
    """Mean squared distance of each sample's representation from its class's prototype.

    FedProto's regulariser (arXiv 2105.00243, equations 7 and 8, as in the authors' code: the
    mean over samples and axes). A sample whose class has no prototype counts with zero.

    Attributes:
        prototypes: (C, O, F) what each client was told.
        known: (C, O) which classes have a prototype, 1 or 0.
        strength: lambda.
    """

    prototypes: Tensor
    known: Tensor
    strength: float

    def __call__(self, step: Step) -> Tensor:
        """See `Term`."""
        features_CBF = step.output.features
        index_CBF = step.target.unsqueeze(-1).expand(features_CBF.shape)
        wanted_CBF = self.prototypes[: step.clients].gather(1, index_CBF)
        away_CB = (features_CBF - wanted_CBF).square().mean(dim=-1)
        counts_CB = self.known[: step.clients].gather(1, step.target) * step.weight
        return self.strength * (away_CB * counts_CB).sum(dim=1)

    def draw(self, features_CFB: Tensor, target_CB: Tensor, weight_CB: Tensor) -> Tensor:
        """See `DrawingTerm`: 2 lambda / F times each sample's share and distance."""
        clients, width = features_CFB.shape[:2]
        share_CB = self.known[:clients].gather(1, target_CB) * weight_CB
        label_O1 = torch.arange(self.known.shape[1], device=target_CB.device).unsqueeze(1)
        is_class_COB = (label_O1 == target_CB.unsqueeze(1)).to(features_CFB)
        wanted_CFB = torch.bmm(self.prototypes[:clients].mT, is_class_COB)
        scale_CB = share_CB * (2 * self.strength / width)
        return (features_CFB - wanted_CFB).mul_(scale_CB.unsqueeze(1))

    def take(self, index: Tensor) -> "Alignment":
        """See `Term`."""
        prototypes, known = take_rows(self.prototypes, index), take_rows(self.known, index)
        return Alignment(prototypes, known, self.strength)


@dataclass(frozen=True)
class Prior:
    """A Gaussian prior N(mean, 1 / precision) on each client's parameters.

    The penalty precision / 2 ||w - mean||^2 (in units of the mean sample loss) is applied as a
    proximal step after each optimiser step, w <- (w + lr p mean) / (1 + lr p): stable for any
    precision, where a gradient step would diverge beyond 2 / lr.

    Attributes:
        mean: parameters, client axis first; those that are not there have no prior.
        precision_C: strength for each client; 0 for none.
    """

    mean: Parameters
    precision_C: Tensor

    def pull(self, params: Parameters, lr_A: Tensor) -> None:
        """Apply the proximal step in place to the first A clients."""
        strength_A = lr_A * self.precision_C[: len(lr_A)]
        share_A = 1 / (1 + 1 / strength_A)  # s / (1 + s), but 1 where s overflows
        for name in self.mean.keys() & params.keys():
            param = params[name]
            share = share_A.reshape(-1, *[1] * (param.dim() - 1))
            param.lerp_(self.mean[name][: len(lr_A)], share)

    def take(self, index: Tensor) -> "Prior":
        """The prior of the chosen clients."""
        return Prior(take(self.mean, index), take_rows(self.precision_C, index))
