"""What every router promises, and the plain one: a softmax over all experts.

Letters: C clients (the leading axis, absent for one client), B batch, D features, E experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from fedmoe.models.base import Parameters, uniform_parameter
from fedmoe.models.routing import Routing, StepContext, behind_softmax, softmax_top_k
from fedmoe.models.written import accumulate, is_written


@dataclass(frozen=True, kw_only=True)
class Router:
    """A linear gate under a softmax over all experts (arXiv 1701.06538, section 2.1).

    A router is a description: its parameters are made for a number of features and then handed
    to every call, with or without a client axis. It runs by `route`; one that knows its
    derivative says so by `behind`, that of `route` by the logits, and `add_gradient`, that of
    `logits` by the parameters. Without them autograd is used.

    Attributes:
        num_experts: E.
    """

    num_experts: int

    @property
    def wants_keys(self) -> bool:
        """Whether `route` draws, by `StepContext.key_C`: making the keys takes time."""
        return False

    @property
    def active(self) -> float:
        """How many experts answer for a sample, on average."""
        return self.num_experts

    @property
    def undecayed(self) -> frozenset[str]:
        """Names of parameters that are no weights, and that weight decay leaves alone."""
        return frozenset()

    def parameters(self, num_features: int) -> dict[str, nn.Parameter]:
        """Fresh parameters by name, expert axis first; drawn from torch's own generator."""
        return {
            "weight": uniform_parameter(self.num_experts, num_features, fan_in=num_features),
            "bias": uniform_parameter(self.num_experts, fan_in=num_features),
        }

    def of(self, num_experts: int) -> Self:
        """The same router for some of the experts; no more of them answer than there are."""
        top_k = getattr(self, "top_k", None)
        fewer = {} if top_k is None else {"top_k": min(top_k, num_experts)}
        return replace(self, num_experts=num_experts, **fewer)

    def route(
        self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> Routing:
        """Decide which experts answer, and with what weight.

        Args:
            params: parameters by name, stacked or not.
            x: (C, B, D) with stacked parameters, (B, D) without.
            context: of a training step; `None` at evaluation.
        """
        del context
        return softmax_top_k(self.logits(params, x), self.num_experts)

    def shared_logits(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """(..., E, B) what the gate makes of the input, without anything private to a client."""
        weight, bias = params["weight"], params["bias"]
        if weight.dim() == 3:
            return torch.baddbmm(bias.unsqueeze(2), weight, x.mT)
        return weight @ x.mT + bias.unsqueeze(-1)

    def logits(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """(..., E, B) what the softmax is taken of."""
        return self.shared_logits(params, x)

    def behind(self, routing: Routing, weight_grad: Tensor, logits_grad: Tensor | None) -> Tensor:
        """(C, E, B): the gradient by the logits.

        Args:
            routing: what `route` gave.
            weight_grad: (C, E, B) gradient by `routing.weight`.
            logits_grad: gradient by `routing.logits` beyond that.
        """
        found = behind_softmax(weight_grad, routing.weight)
        return found if logits_grad is None else found.add_(logits_grad)

    def add_gradient(
        self, logits_grad_CEB: Tensor, x_CBD: Tensor, into: Parameters, keep: float
    ) -> None:
        """`into <- keep * into + gradient` by the parameters; see `Pass.backward`."""
        into["weight"].baddbmm_(logits_grad_CEB, x_CBD, beta=keep)
        accumulate(into["bias"], logits_grad_CEB.sum(dim=2), keep)

    def knows_derivative(self) -> bool:
        """Whether both derivatives belong to the functions that this class has."""
        return (
            is_written(self, "behind", "route")
            and is_written(self, "add_gradient", "logits")
            and is_written(self, "add_gradient", "shared_logits")
        )
