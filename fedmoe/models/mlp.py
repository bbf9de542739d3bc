"""Multilayer perceptron with ReLU.

Letters: C clients, B batch, D features, O outputs, F width of the last hidden layer.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from fedmoe.models.base import ModelOutput, StackedModule, affine, uniform_parameter


class Mlp(StackedModule):
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
