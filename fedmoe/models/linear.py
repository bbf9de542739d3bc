"""Linear regression and softmax regression: one affine map.

Letters: C clients, B batch, D features, O outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe.models.base import ModelOutput, Parameters, affine, uniform_parameter
from fedmoe.models.written import WrittenModule, accumulate


class Linear(WrittenModule):
    """y = W x + b; the representation is the input itself."""

    def __init__(self, num_features: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = uniform_parameter(num_outputs, num_features, fan_in=num_features)
        self.bias = uniform_parameter(num_outputs, fan_in=num_features)

    def apply_parameters(self, params: Mapping[str, Tensor], x: Tensor) -> ModelOutput:
        """See `StackedModule`: (..., B, D) to (..., B, O)."""
        return ModelOutput(affine(x, params["weight"], params["bias"]), x)

    def written_pass(self, params: Mapping[str, Tensor], x_CBD: Tensor) -> "_Pass":
        """See `WrittenModule`."""
        y_COB = torch.baddbmm(params["bias"].unsqueeze(2), params["weight"], x_CBD.mT)
        return _Pass(x_CBD, y_COB)


@dataclass(slots=True)
class _Pass:
    x_CBD: Tensor
    y_COB: Tensor
    probs_CEB: None = None
    chosen_CEB: None = None

    def backward(
        self, y_grad_COB: Tensor, probs_grad_CEB: Tensor | None, into: Parameters, keep: float
    ) -> None:
        del probs_grad_CEB  # there is no router
        into["weight"].baddbmm_(y_grad_COB, self.x_CBD, beta=keep)
        accumulate(into["bias"], y_grad_COB.sum(dim=2), keep)
