"""Linear regression and softmax regression: one affine map.

Letters: C clients, B batch, D features, O outputs.
"""

from collections.abc import Mapping

from torch import Tensor

from fedmoe.models.base import ModelOutput, StackedModule, affine, uniform_parameter


class Linear(StackedModule):
    """y = W x + b; the representation is the input itself."""

    def __init__(self, num_features: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = uniform_parameter(num_outputs, num_features, fan_in=num_features)
        self.bias = uniform_parameter(num_outputs, fan_in=num_features)

    def apply_parameters(self, params: Mapping[str, Tensor], x: Tensor) -> ModelOutput:
        """See `StackedModule`: (..., B, D) to (..., B, O)."""
        return ModelOutput(affine(x, params["weight"], params["bias"]), x)
