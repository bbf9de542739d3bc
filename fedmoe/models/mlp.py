"""Multilayer perceptron with ReLU.

Letters: C clients, B batch, D features, O outputs, F width of the last hidden layer,
I and J inputs and outputs of a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from fedmoe.models.base import ModelOutput, Parameters, affine, uniform_parameter
from fedmoe.models.written import WrittenModule, accumulate, behind_relu


class Mlp(WrittenModule):
    """Affine maps with ReLU between; the representation is the last hidden layer."""

    def __init__(self, num_features: int, hidden: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        widths = [num_features, *hidden, num_outputs]
        self.weights = nn.ParameterList(
            uniform_parameter(after, before, fan_in=before) for before, after in pairwise(widths)
        )
        self.biases = nn.ParameterList(
            uniform_parameter(after, fan_in=before) for before, after in pairwise(widths)
        )

    def apply_parameters(self, params: Mapping[str, Tensor], x: Tensor) -> ModelOutput:
        """See `StackedModule`: (..., B, D) to (..., B, O)."""
        last = len(self.weights) - 1
        features = x
        for layer in range(last):
            features = affine(
                features, params[f"weights.{layer}"], params[f"biases.{layer}"]
            ).relu()
        y = affine(features, params[f"weights.{last}"], params[f"biases.{last}"])
        return ModelOutput(y, features)

    def written_pass(self, params: Mapping[str, Tensor], x_CBD: Tensor) -> "_Pass":
        """See `WrittenModule`."""
        last = len(self.weights) - 1
        inputs_CIB = [x_CBD.mT]
        for layer in range(last):
            inputs_CIB.append(_layer(params, layer, inputs_CIB[layer]).relu_())
        return _Pass(params, inputs_CIB, _layer(params, last, inputs_CIB[last]))


def _layer(params: Mapping[str, Tensor], layer: int, x_CIB: Tensor) -> Tensor:
    bias_CJ1 = params[f"biases.{layer}"].unsqueeze(2)
    return torch.baddbmm(bias_CJ1, params[f"weights.{layer}"], x_CIB)


@dataclass(slots=True)
class _Pass:
    params: Mapping[str, Tensor]
    inputs_CIB: list[Tensor]
    y_COB: Tensor
    probs_CEB: None = None
    chosen_CEB: None = None

    def backward(
        self, y_grad_COB: Tensor, probs_grad_CEB: Tensor | None, into: Parameters, keep: float
    ) -> None:
        del probs_grad_CEB  # there is no router
        grad_CJB = y_grad_COB
        for layer in reversed(range(len(self.inputs_CIB))):
            x_CIB, below = self.inputs_CIB[layer], grad_CJB
            if layer:  # before `into`, which may be the weights themselves
                below = torch.bmm(self.params[f"weights.{layer}"].mT, grad_CJB)
                behind_relu(below, x_CIB)
            into[f"weights.{layer}"].baddbmm_(grad_CJB, x_CIB.mT, beta=keep)
            accumulate(into[f"biases.{layer}"], grad_CJB.sum(dim=2), keep)
            grad_CJB = below
