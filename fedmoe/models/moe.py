"""Mixture of experts: a router, E experts of one kind, and a way to combine their answers.

Every parameter has the expert axis first: `experts.NAME` is the expert module's own parameter
NAME, E times, and the router's rows are its experts'. Experts that were not chosen for a sample
have weight 0, so they neither answer nor learn.

Letters: C clients (the leading axis, absent for one client), B batch, D features, O outputs,
E experts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from fedmoe.models.base import ModelOutput, Parameters, StackedModule
from fedmoe.models.combining import COMBINE, Combine, Mixed
from fedmoe.models.experts import Experts, ParameterTree, stack_of
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
        experts: Callable[[], nn.Module],
        num_experts: int,
        router: Router,
        combine: Literal["outputs", "probabilities"] = "outputs",
    ) -> None:
        """Make the parameters; each expert and the router by draws of its own.

        Args:
            num_features: D.
            num_outputs: O.
            experts: makes one expert, which maps (B, D) to (B, O).
            num_experts: E.
            router: for as many experts.
            combine: see `fedmoe.models.combining`; `probabilities` is for classification.

        Raises:
            ConfigError: an expert has buffers or frozen parameters.
            ValueError: the router is for another number of experts.
        """
        super().__init__()
        if router.num_experts != num_experts:
            raise ValueError(
                f"a router for {router.num_experts} experts, but there are {num_experts}"
            )
        self.num_outputs, self.num_experts = num_outputs, num_experts
        self.rule, self.combine = router, combine
        modules = [experts() for _ in range(num_experts)]
        self.router = ParameterTree(router.parameters(num_features))
        self.experts = ParameterTree(stack_of(modules))
        self._kind = Experts(modules[0], num_experts)
        self.draws = not isinstance(modules[0], StackedModule) or modules[0].draws
        self._names = {
            part: {name: f"{part}.{name}" for name, _ in getattr(self, part).named_parameters()}
            for part in ("router", "experts")
        }

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
        assert self._kind.kernel is not None
        routing = self.rule.route(self._own("router", params), x_CBD, context)
        answers = self._kind.kernel(self._own("experts", params), x_CBD)
        combine = COMBINE[self.combine]
        mixed = combine.mix(answers.y_COB, routing.weight)
        return _Pass(self, combine, x_CBD, routing, answers, mixed)

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
    routing = Routing(*(part.squeeze(-1) for part in output.routing))
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
