"""Mixture of experts under a softmax top-k router.

Letters: C clients, B batch, D features, O outputs, E experts, H hidden width of an expert,
J = E H.

The experts' first layers are one wide affine map, and the gate-weighted sum of their second
layers is another (sum_e g_e W_e h_e = [W_1 .. W_E] [g_1 h_1 .. g_E h_E]): two batched matrix
products for any number of experts and clients. Experts that were not chosen have weight 0, so
they neither answer nor learn.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe.models.base import ModelOutput, Parameters, affine, uniform_parameter
from fedmoe.models.routers import Routing, behind_softmax, softmax_top_k
from fedmoe.models.written import WrittenModule, accumulate, behind_relu


class MixtureOfExperts(WrittenModule):
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

    def written_pass(self, params: Mapping[str, Tensor], x_CBD: Tensor) -> "_Pass":
        """See `WrittenModule`. Each expert answers for itself, which saves the wide mixture."""
        logits_CEB = torch.baddbmm(
            params["gate_bias"].unsqueeze(2), params["gate_weight"], x_CBD.mT
        )
        routing = softmax_top_k(logits_CEB, self.top_k, dim=1)
        weight_CEOH, bias_CEO = params["expert_weight"], params["expert_bias"]
        hidden = None
        if self.hidden:
            first_CJD = params["hidden_weight"].flatten(1, 2)
            bias_CJ1 = params["hidden_bias"].flatten(1).unsqueeze(2)
            hidden = torch.baddbmm(bias_CJ1, first_CJD, x_CBD.mT).relu_()
            hidden = hidden.view(-1, self.hidden, hidden.shape[2])
            answers = torch.baddbmm(
                bias_CEO.flatten(0, 1).unsqueeze(2), weight_CEOH.flatten(0, 1), hidden
            )
        else:
            answers = torch.baddbmm(
                bias_CEO.flatten(1).unsqueeze(2), weight_CEOH.flatten(1, 2), x_CBD.mT
            )
        answers_CEOB = answers.view(*bias_CEO.shape, -1)
        y_COB = (answers_CEOB * routing.weight.unsqueeze(2)).sum(dim=1)
        return _Pass(params, x_CBD, routing, hidden, answers_CEOB, y_COB)


@dataclass(slots=True)
class _Pass:
    """`hidden` is (C E, H, B), or `None` for linear experts."""

    params: Mapping[str, Tensor]
    x_CBD: Tensor
    routing: Routing
    hidden: Tensor | None
    answers_CEOB: Tensor
    y_COB: Tensor

    @property
    def probs_CEB(self) -> Tensor:
        return self.routing.probs

    @property
    def chosen_CEB(self) -> Tensor:
        return self.routing.chosen

    def backward(
        self, y_grad_COB: Tensor, probs_grad_CEB: Tensor | None, into: Parameters, keep: float
    ) -> None:
        mix_CEB, y_grad_C1OB = self.routing.weight, y_grad_COB.unsqueeze(1)
        answers_grad = y_grad_C1OB * mix_CEB.unsqueeze(2)
        self._experts_backward(answers_grad, into, keep)
        accumulate(into["expert_bias"], answers_grad.sum(dim=3), keep)
        logits_grad = behind_softmax((self.answers_CEOB * y_grad_C1OB).sum(dim=2), mix_CEB)
        if probs_grad_CEB is not None:
            logits_grad += behind_softmax(probs_grad_CEB, self.routing.probs)
        into["gate_weight"].baddbmm_(logits_grad, self.x_CBD, beta=keep)
        accumulate(into["gate_bias"], logits_grad.sum(dim=2), keep)

    def _experts_backward(self, grad_CEOB: Tensor, into: Parameters, keep: float) -> None:
        """Everything of the experts but the bias of their last layer."""
        last = into["expert_weight"]
        if self.hidden is None:
            last.view(len(last), -1, last.shape[-1]).baddbmm_(
                grad_CEOB.flatten(1, 2), self.x_CBD, beta=keep
            )
            return
        grad = grad_CEOB.flatten(0, 1)
        below = torch.bmm(self.params["expert_weight"].flatten(0, 1).mT, grad)
        behind_relu(below, self.hidden)
        last.view(-1, *last.shape[2:]).baddbmm_(grad, self.hidden.mT, beta=keep)
        first, bias = into["hidden_weight"], into["hidden_bias"]
        below = below.view(len(first), -1, below.shape[-1])
        first.view(len(first), -1, first.shape[-1]).baddbmm_(below, self.x_CBD, beta=keep)
        accumulate(bias.view(len(bias), -1), below.sum(dim=2), keep)
