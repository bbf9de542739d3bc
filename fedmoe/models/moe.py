"""Mixture of experts under a softmax top-k router.

Letters: C clients, B batch, D features, O outputs, E experts, H hidden width of an expert.

The experts' first layers are one wide affine map, and the gate-weighted sum of their second
layers is another (sum_e g_e W_e h_e = [W_1 .. W_E] [g_1 h_1 .. g_E h_E]): two batched matrix
products for any number of experts and clients. Experts that were not chosen have weight 0, so
they neither answer nor learn.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedmoe.models.base import ModelOutput, StackedModule, affine, uniform_parameter
from fedmoe.models.routers import softmax_top_k


class MixtureOfExperts(StackedModule):
    """E experts, linear (H = 0) or with one hidden layer, mixed by a linear gate.

    The representation is the gate-weighted mean of the experts' hidden layers, or the input
    for linear experts.
    """

    def __init__(
        self, num_features: int, num_outputs: int, *, num_experts: int, top_k: int, hidden: int
    ) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.hidden = num_experts, top_k, hidden
        self.gate_weight = uniform_parameter(num_experts, num_features, fan_in=num_features)
        self.gate_bias = uniform_parameter(num_experts, fan_in=num_features)
        width = hidden or num_features
        if hidden:
            shape = (num_experts, hidden)
            self.hidden_weight = uniform_parameter(*shape, num_features, fan_in=num_features)
            self.hidden_bias = uniform_parameter(*shape, fan_in=num_features)
        self.expert_weight = uniform_parameter(num_experts, num_outputs, width, fan_in=width)
        self.expert_bias = uniform_parameter(num_experts, num_outputs, fan_in=width)

    def apply_parameters(self, params: Mapping[str, Tensor], x: Tensor) -> ModelOutput:
        """See `StackedModule`: (..., B, D) to (..., B, O)."""
        routing = softmax_top_k(affine(x, params["gate_weight"], params["gate_bias"]), self.top_k)
        if self.hidden:
            inner = affine(
                x, params["hidden_weight"].flatten(-3, -2), params["hidden_bias"].flatten(-2)
            ).relu()
            experts = inner.reshape(*x.shape[:-1], self.num_experts, self.hidden)
        else:
            experts = x.unsqueeze(-2).expand(*x.shape[:-1], self.num_experts, x.shape[-1])
        weighted = routing.weight.unsqueeze(-1) * experts
        # (.., E, O, H) to (.., O, E H): the experts' last layers side by side.
        side_by_side = params["expert_weight"].movedim(-3, -2).flatten(-2)
        bias = routing.weight @ params["expert_bias"]
        y = torch.matmul(weighted.flatten(-2), side_by_side.mT) + bias
        features = weighted.sum(dim=-2) if self.hidden else x
        return ModelOutput(y, features, routing.probs, routing.chosen)
