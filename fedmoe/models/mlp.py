"""Multilayer perceptron with ReLU.

Letters: C clients, B batch, D features, O outputs, F width of the last hidden layer,
I and J inputs and outputs of a layer, E experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from fedmoe.models.base import ModelOutput, Parameters, affine, uniform_parameter
from fedmoe.models.routing import StepContext
from fedmoe.models.written import WrittenModule, accumulate, behind_relu


class Mlp(WrittenModule):
    """Affine maps with ReLU between; the representation is the last hidden layer."""

    gives_features = True

    def __init__(self, num_features: int, hidden: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        widths = [num_features, *hidden, num_outputs]
        self.weights = nn.ParameterList(
            uniform_parameter(after, before, fan_in=before) for before, after in pairwise(widths)
        )
        self.biases = nn.ParameterList(
            uniform_parameter(after, fan_in=before) for before, after in pairwise(widths)
        )

    def apply_parameters(
        self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> ModelOutput:
        """See `StackedModule`: (..., B, D) to (..., B, O)."""
        del context  # there is no router
        last = len(self.weights) - 1
        features = x
        for layer in range(last):
            features = affine(
                features, params[f"weights.{layer}"], params[f"biases.{layer}"]
            ).relu()
        y = affine(features, params[f"weights.{last}"], params[f"biases.{last}"])
        return ModelOutput(y, features)

    def written_pass(
        self, params: Mapping[str, Tensor], x_CBD: Tensor, context: StepContext | None = None
    ) -> "_Pass":
        """See `WrittenModule`; (C, E, ...) parameters of experts give (C, E, O, B)."""
        del context
        last = len(self.weights) - 1
        # Experts see the same samples: their first layers are one wide product.
        first, bias = params["weights.0"], params["biases.0"]
        hidden = torch.baddbmm(bias.flatten(1).unsqueeze(2), first.flatten(1, -2), x_CBD.mT)
        inputs_CIB = [x_CBD.mT, hidden.relu_().view(-1, bias.shape[-1], hidden.shape[2])]
        for layer in range(1, last):
            inputs_CIB.append(_layer(params, layer, inputs_CIB[layer]).relu_())
        y = _layer(params, last, inputs_CIB[last])
        return _Pass(params, inputs_CIB, y.view(*params[f"biases.{last}"].shape, -1))


def _layer(params: Mapping[str, Tensor], layer: int, x_CIB: Tensor) -> Tensor:
    """One layer of C clients, or of their C E experts."""
    bias_CJ1 = params[f"biases.{layer}"].flatten(0, -2).unsqueeze(2)
    return torch.baddbmm(bias_CJ1, params[f"weights.{layer}"].flatten(0, -3), x_CIB)


@dataclass(slots=True)
class _Pass:
    """`inputs_CIB` has the C E experts in front, where there are experts, but for the first."""

    params: Mapping[str, Tensor]
    inputs_CIB: list[Tensor]
    y_COB: Tensor
    routing: None = None

    @property
    def features_CFB(self) -> Tensor:
        return self.inputs_CIB[-1]

    def backward(
        self, y_grad_COB: Tensor, logits_grad_CEB: Tensor | None, into: Parameters, keep: float
    ) -> None:
        del logits_grad_CEB  # there is no router
        self._backward(y_grad_COB, None, into, keep)

    def backward_with(
        self, y_grad_COB: Tensor, features_grad_CFB: Tensor, into: Parameters, keep: float
    ) -> None:
        self._backward(y_grad_COB, features_grad_CFB, into, keep)

    def _backward(
        self, y_grad_COB: Tensor, features_grad: Tensor | None, into: Parameters, keep: float
    ) -> None:
        grad_CJB = y_grad_COB.flatten(0, -3)
        for layer in reversed(range(1, len(self.inputs_CIB))):
            x_CIB, weight, bias = self.inputs_CIB[layer], *_of(into, layer)
            # Before `into`, which may be the weights themselves.
            below = torch.bmm(self.params[f"weights.{layer}"].flatten(0, -3).mT, grad_CJB)
            if features_grad is not None:  # the last hidden layer comes first
                below += features_grad
                features_grad = None
            behind_relu(below, x_CIB)
            weight.view(-1, *weight.shape[-2:]).baddbmm_(grad_CJB, x_CIB.mT, beta=keep)
            accumulate(bias, grad_CJB.sum(dim=2).view_as(bias), keep)
            grad_CJB = below
        x_CDB, weight, bias = self.inputs_CIB[0], *_of(into, 0)
        grad_CJB = grad_CJB.view(len(bias), -1, grad_CJB.shape[2])
        weight.view(len(bias), -1, weight.shape[-1]).baddbmm_(grad_CJB, x_CDB.mT, beta=keep)
        accumulate(bias, grad_CJB.sum(dim=2).view_as(bias), keep)


def _of(into: Parameters, layer: int) -> tuple[Tensor, Tensor]:
    """A layer's weight and bias."""
    return into[f"weights.{layer}"], into[f"biases.{layer}"]
