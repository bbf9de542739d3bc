"""Linear regression and softmax regression: one affine map.

Letters: C clients, B batch, D features, O outputs, E experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe.models.base import ModelOutput, Parameters, affine, uniform_parameter
from fedmoe.models.routing import StepContext
from fedmoe.models.written import WrittenModule, accumulate


class Linear(WrittenModule):
    """y = W x + b; the representation is the input itself."""

    gives_features = True

    def __init__(self, num_features: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = uniform_parameter(num_outputs, num_features, fan_in=num_features)
        self.bias = uniform_parameter(num_outputs, fan_in=num_features)

    def apply_parameters(
        self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> ModelOutput:
        """See `StackedModule`: (..., B, D) to (..., B, O)."""
        del context  # there is no router
        return ModelOutput(affine(x, params["weight"], params["bias"]), x)

    def written_pass(
        self, params: Mapping[str, Tensor], x_CBD: Tensor, context: StepContext | None = None
    ) -> "_Pass":
        """See `WrittenModule`; (C, E, ...) parameters of experts give (C, E, O, B)."""
        del context
        weight, bias = params["weight"], params["bias"]
        y = torch.baddbmm(bias.flatten(1).unsqueeze(2), weight.flatten(1, -2), x_CBD.mT)
        return _Pass(x_CBD, y.view(*bias.shape, -1))


@dataclass(slots=True)
class _Pass:
    x_CBD: Tensor
    y_COB: Tensor
    routing: None = None

    @property
    def features_CFB(self) -> Tensor:
        return self.x_CBD.mT

    def backward_with(
        self, y_grad_COB: Tensor, features_grad_CFB: Tensor, into: Parameters, keep: float
    ) -> None:
        del features_grad_CFB  # no parameter moves the input
        self.backward(y_grad_COB, None, into, keep)

    def backward(
        self, y_grad_COB: Tensor, logits_grad_CEB: Tensor | None, into: Parameters, keep: float
    ) -> None:
        del logits_grad_CEB  # there is no router
        weight = into["weight"]
        weight.view(len(weight), -1, weight.shape[-1]).baddbmm_(
            y_grad_COB.flatten(1, -2), self.x_CBD, beta=keep
        )
        accumulate(into["bias"], y_grad_COB.sum(dim=-1), keep)
