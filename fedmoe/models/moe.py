"""Mixture of experts: a router, E experts of one kind, and a way to combine their answers.

Every parameter has the expert axis first: `experts.NAME` is the expert module's own parameter
NAME, E times, and the router's rows are its experts'. Experts that were not chosen for a sample
have weight 0, so they neither answer nor learn.

Letters: C clients (the leading axis, absent for one client), B batch, D features, O outputs,
E experts.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from fedmoe.errors import ConfigError
from fedmoe.models.base import ModelOutput, Parameters, StackedModule
from fedmoe.models.combining import COMBINE, Combine, Mixed
from fedmoe.models.expert import Expert, check_alike
from fedmoe.models.experts import Experts, ParameterTree, stack_of
from fedmoe.models.filled import filled
from fedmoe.models.routers import Router
from fedmoe.models.routing import Routing, StepContext
from fedmoe.models.written import Pass, WrittenModule


class Said(NamedTuple):
    """What a model says of some samples.

    Attributes:
        y_COB: logits or predictions.
        routing: who answered, or `None` without a router.
        answers: (C, E, O, B) what each expert says, or `None`.
    """

    y_COB: Tensor
    routing: Routing | None
    answers: Tensor | None


class MixtureOfExperts(WrittenModule):
    """E experts under a router.

    The representation is the weighted mean of the experts' representations, or the input for
    linear experts.

    Attributes:
        num_experts: E.
        rule: the router; its parameters are in `router`.
        combine: how the answers are combined.
    """

    def __init__(
        self,
        num_features: int,
        num_outputs: int,
        *,
        experts: Sequence[Expert],
        router: Router,
        combine: Literal["outputs", "probabilities"] = "outputs",
    ) -> None:
        """Make the parameters; each expert and the router by draws of its own.

        Args:
            num_features: D.
            num_outputs: O.
            experts: E of one kind, each of which maps (B, D) to (B, O).
            router: for as many experts.
            combine: see `fedmoe.models.combining`; `probabilities` is for classification.

        Raises:
            ConfigError: the experts are not alike, or have buffers or frozen parameters; or the
                router is for another number of experts.
        """
        super().__init__()
        check_alike(experts)
        if router.num_experts != len(experts):
            raise ConfigError(
                f"a router for {router.num_experts} experts, but there are {len(experts)}"
            )
        self.num_outputs, self.num_experts = num_outputs, len(experts)
        self.rule, self.combine = router, combine
        modules = [expert.build(num_features, num_outputs) for expert in experts]
        self.router = ParameterTree(router.parameters(num_features))
        self.experts = ParameterTree(stack_of(modules))
        self._kind = Experts(modules[0], len(experts))
        self.wants_keys = router.wants_keys
        self.undecayed = frozenset(f"router.{name}" for name in router.undecayed)
        self.draws = not isinstance(modules[0], StackedModule) or modules[0].draws
        self._names = {
            part: {name: f"{part}.{name}" for name, _ in getattr(self, part).named_parameters()}
            for part in ("router", "experts")
        }

    def like(self, num_experts: int) -> "MixtureOfExperts":
        """The same mixture with fewer experts, for parameters that are handed in."""
        if num_experts == self.num_experts:
            return self
        fewer = copy(self)
        fewer.num_experts = num_experts
        fewer.rule = self.rule.of(num_experts)
        fewer._kind = Experts(self._kind.prototype, num_experts)
        return fewer

    def expert(self, expert_id: int) -> nn.Module:
        """One expert as a module of its own, a copy: what it makes of (B, D) without the router.

        Raises:
            IndexError: there is no such expert.
        """
        if not 0 <= expert_id < self.num_experts:
            raise IndexError(f"expert {expert_id}: there are 0 to {self.num_experts - 1}")
        own = self.experts.named_parameters()
        return filled(self._kind.prototype, {name: value[expert_id] for name, value in own})

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the experts as well, which may have dropout."""
        self._kind.prototype.train(mode)
        return super().train(mode)

    def apply_parameters(
        self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> ModelOutput:
        """See `StackedModule`: (..., B, D) to (..., B, O)."""
        if x.dim() == 1:
            return _first_sample(self.apply_parameters(params, x.unsqueeze(0), context))
        routing = self.rule.route(self._own("router", params), x, context)
        answers = self._kind.run(self._own("experts", params), x)
        y = COMBINE[self.combine].mix(answers.y, routing.weight).y.mT
        features = x
        if answers.features is not None:
            features = torch.einsum("...eb,...ebf->...bf", routing.weight, answers.features)
        return ModelOutput(y, features, routing, answers.y)

    def knows_derivative(self) -> bool:
        """See `WrittenModule`: where the experts and the router do."""
        return self._kind.kernel is not None and self.rule.knows_derivative()

    def written_pass(
        self, params: Mapping[str, Tensor], x_CBD: Tensor, context: StepContext | None = None
    ) -> "_Pass":
        """See `WrittenModule`."""
        routing = self.rule.route(self._own("router", params), x_CBD, context)
        answers = self._kind.written(
            self._own("experts", params), x_CBD, routing.chosen, self.rule.active
        )
        combine = COMBINE[self.combine]
        mixed = combine.mix(answers.y_COB, routing.weight)
        return _Pass(self, combine, x_CBD, routing, answers, mixed)

    def route(self, params: Mapping[str, Tensor], x: Tensor) -> Routing:
        """What the router decides for (..., B, D), as at evaluation."""
        return self.rule.route(self._own("router", params), x)

    def answers(self, params: Mapping[str, Tensor], x_CBD: Tensor) -> tuple[Tensor, Tensor]:
        """What the experts say one by one, and the gate without anything private to a client.

        Returns:
            (C, E, O, B) outputs of each expert, and (C, E, B) the logits of the gate without
            prior or assignment; zero without a gate.
        """
        logits_CEB = self.rule.shared_logits(self._own("router", params), x_CBD)
        return self._all_answers(params, x_CBD), logits_CEB

    def said(self, params: Mapping[str, Tensor], x_CBD: Tensor) -> "Said":
        """Run stacked parameters for evaluation, and keep what all experts say, chosen or not."""
        routing = self.rule.route(self._own("router", params), x_CBD)
        y_CEOB = self._all_answers(params, x_CBD)
        return Said(COMBINE[self.combine].mix(y_CEOB, routing.weight).y, routing, y_CEOB)

    def _all_answers(self, params: Mapping[str, Tensor], x_CBD: Tensor) -> Tensor:
        own, kernel = self._own("experts", params), self._kind.kernel
        return kernel(own, x_CBD).y_COB if kernel else self._kind.run(own, x_CBD).y

    def _own(self, part: str, params: Mapping[str, Tensor]) -> Parameters:
        """The parameters of the router or of the experts, by their own names."""
        return {name: params[full] for name, full in self._names[part].items()}


def _first_sample(output: ModelOutput) -> ModelOutput:
    """An output for (1, D) as one for (D,)."""
    assert output.routing is not None
    assert output.answers is not None
    weight, probs, chosen, logits = (part.squeeze(-1) for part in output.routing[:4])
    demand = output.routing.demand
    routing = Routing(weight, probs, chosen, logits, None if demand is None else demand.squeeze(-1))
    y, features = output.y.squeeze(-2), output.features.squeeze(-2)
    return ModelOutput(y, features, routing, output.answers.squeeze(-1))


@dataclass(slots=True)
class _Pass:
    """`answers.y_COB` is (C, E, O, B)."""

    model: MixtureOfExperts
    combine: Combine
    x_CBD: Tensor
    routing: Routing
    answers: Pass
    mixed: Mixed

    @property
    def y_COB(self) -> Tensor:
        return self.mixed.y

    def backward(
        self, y_grad_COB: Tensor, logits_grad_CEB: Tensor | None, into: Parameters, keep: float
    ) -> None:
        answers_grad, weight_grad = self.combine.behind(self.mixed, self.routing.weight, y_grad_COB)
        model, rule = self.model, self.model.rule
        self.answers.backward(answers_grad, None, model._own("experts", into), keep)
        logits_grad = rule.behind(self.routing, weight_grad, logits_grad_CEB)
        rule.add_gradient(logits_grad, self.x_CBD, model._own("router", into), keep)
