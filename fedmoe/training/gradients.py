"""The gradient of one step, multiplied out only where somebody has to see it.

Letters: C clients, O outputs, E experts, B batch, F width of the representation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from fedmoe.models.base import Parameters
from fedmoe.models.written import Pass, RepresentingPass


class Gradient(Protocol):
    """A gradient by the stacked parameters, used once."""

    def tensors(self) -> Parameters:
        """By name; not to be changed, for autograd may give two parameters the same one."""
        ...

    def add_to(self, into: Parameters, *, keep: float = 1.0, scale_C: Tensor | None = None) -> None:
        """`into <- keep * into + scale * gradient`; no scale is 1 for every client."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A gradient that is there already."""

    by_name: Parameters

    def tensors(self) -> Parameters:
        """See `Gradient`."""
        return self.by_name

    def add_to(self, into: Parameters, *, keep: float = 1.0, scale_C: Tensor | None = None) -> None:
        """See `Gradient`."""
        for name, value in into.items():
            if keep != 1.0:
                value.mul_(keep)
            if scale_C is None:
                value.add_(self.by_name[name])
            else:
                value.addcmul_(per_client(scale_C, value), self.by_name[name])

    def norm_C(self) -> Tensor:
        """L2 norm over all parameters of a client."""
        norms = [
            torch.linalg.vector_norm(grad.reshape(len(grad), -1), dim=1)
            for grad in self.by_name.values()
        ]
        norm_C: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        return norm_C


@dataclass(frozen=True, slots=True)
class Written:
    """What a written pass will add: the backward pass runs where its result is wanted.

    Attributes:
        params: the parameters of the pass, client axis first.
        run: the forward pass.
        y_grad_COB: gradient of the loss by its output.
        logits_grad_CEB: gradient by the router's logits beyond that of its output, or `None`.
        features_grad_CFB: gradient by the representation beyond that of its output, or `None`;
            only for a `RepresentingPass`.
    """

    params: Mapping[str, Tensor]
    run: Pass
    y_grad_COB: Tensor
    logits_grad_CEB: Tensor | None
    features_grad_CFB: Tensor | None = None

    def tensors(self) -> Parameters:
        """See `Gradient`; these are the caller's to change."""
        found = {name: torch.empty_like(value) for name, value in self.params.items()}
        self._backward(self.y_grad_COB, self.logits_grad_CEB, self.features_grad_CFB, found, 0.0)
        return found

    def add_to(self, into: Parameters, *, keep: float = 1.0, scale_C: Tensor | None = None) -> None:
        """See `Gradient`."""
        y_grad, logits_grad = self.y_grad_COB, self.logits_grad_CEB
        features_grad = self.features_grad_CFB
        if scale_C is not None:  # a gradient is linear in these, which are small
            scale_C11 = scale_C.view(-1, 1, 1)
            y_grad = y_grad * scale_C11
            logits_grad = None if logits_grad is None else logits_grad * scale_C11
            features_grad = None if features_grad is None else features_grad * scale_C11
        self._backward(y_grad, logits_grad, features_grad, into, keep)

    def _backward(
        self,
        y_grad: Tensor,
        logits_grad: Tensor | None,
        features_grad: Tensor | None,
        into: Parameters,
        keep: float,
    ) -> None:
        if features_grad is None:
            self.run.backward(y_grad, logits_grad, into, keep)
        else:
            cast(RepresentingPass, self.run).backward_with(y_grad, features_grad, into, keep)


def per_client(value_C: Tensor, like: Tensor) -> Tensor:
    """One value per client, shaped to go with `like`, whose client axis is first."""
    return value_C.reshape(-1, *[1] * (like.dim() - 1))
