"""Every model written out for one sample at a time, in double precision."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from routers_oracle import Batch, naive_route
from torch import Tensor, nn

from fedmoe.models import Linear, MixtureOfExperts, Mlp, ModelOutput, Parameters
from fedmoe.models.expert import Expert
from fedmoe.models.routers import (
    ClientRouter,
    EnsembleRouter,
    ExpertChoiceRouter,
    LossFreeRouter,
    NoisyRouter,
    PriorRouter,
    Router,
    RuleRouter,
    SoftmaxRouter,
    SwitchRouter,
)
from fedmoe.models.written import WrittenModule

C, B, D, OUT = 3, 7, 4, 3
Naive = Callable[[Parameters, Tensor], list[Tensor]]


def dot(weight_OD: Tensor, x_D: Tensor, bias_O: Tensor) -> Tensor:
    return torch.stack([(row * x_D).sum() + b for row, b in zip(weight_OD, bias_O, strict=True)])


def naive_linear(params: Parameters, x_D: Tensor) -> list[Tensor]:
    return [dot(params["weight"], x_D, params["bias"]), x_D]


def naive_mlp(params: Parameters, x_D: Tensor) -> list[Tensor]:
    layers = len(params) // 2
    features = x_D
    for layer in range(layers - 1):
        before = dot(params[f"weights.{layer}"], features, params[f"biases.{layer}"])
        features = torch.where(before > 0, before, 0.0)
    last = layers - 1
    return [dot(params[f"weights.{last}"], features, params[f"biases.{last}"]), features]


def naive_expert(params: Parameters, e: int, x_D: Tensor) -> list[Tensor]:
    """Expert e's answer and representation."""
    own = {
        name.removeprefix("experts."): value[e]
        for name, value in params.items()
        if name.startswith("experts.")
    }
    return naive_linear(own, x_D) if "weight" in own else naive_mlp(own, x_D)


def naive_moe(router: Router, combine: str = "outputs") -> Naive:
    """One sample through a mixture: y, features, the parts of its routing, and answers."""

    def run(params: Parameters, x_D: Tensor) -> list[Tensor]:
        experts = range(router.num_experts)
        routing = naive_routing(router, params, x_D)
        weight_E, _, chosen_E = routing[:3]
        answers = [naive_expert(params, e, x_D) for e in experts]
        y_O, features = torch.zeros(()), torch.zeros(())
        for e in experts:
            if chosen_E[e]:
                answer = answers[e][0]
                if combine == "probabilities":
                    answer = answer.exp() / answer.exp().sum()
                y_O = y_O + weight_E[e] * answer
                features = features + weight_E[e] * answers[e][1]
        if combine == "probabilities":
            y_O = y_O.log()
        if "experts.weight" in params:
            features = x_D
        answers_EO = torch.stack([answer for answer, _ in answers])
        return [y_O, features, *routing, answers_EO]

    return run


def naive_routing(router: Router, params: Parameters, x_D: Tensor) -> list[Tensor]:
    """Weights, probabilities, chosen, logits and demand of one sample at evaluation."""
    own = {
        name.removeprefix("router."): value
        for name, value in params.items()
        if name.startswith("router.")
    }
    (decision,) = naive_route(router, own, Batch(x_D[None]))
    return [torch.stack(part) for part in decision if part is not None]


def mixture(
    router: Router, hidden: tuple[int, ...] = (), combine: Any = "outputs", num_outputs: int = OUT
) -> MixtureOfExperts:
    experts = Expert(0, hidden=hidden).times(router.num_experts)
    return MixtureOfExperts(
        D, num_outputs, experts=experts, router=router,
        combine=combine,
    )  # fmt: skip


def moe(top_k: int, hidden: int, num_experts: int = 4) -> MixtureOfExperts:
    router = SoftmaxRouter(num_experts=num_experts, top_k=top_k)
    return mixture(router, (hidden,) if hidden else ())


ROUTERS: dict[str, Router] = {
    "plain": Router(num_experts=3),
    "softmax": SoftmaxRouter(num_experts=4, top_k=2),
    "prior": PriorRouter(num_experts=3),
    "prior-alone": PriorRouter(num_experts=3, gate=False),
    "client": ClientRouter(num_experts=3),
    "switch": SwitchRouter(num_experts=4, capacity_factor=1.0),
    "expert-choice": ExpertChoiceRouter(num_experts=4, capacity_factor=1.5, top_k=2),
    "loss-free": LossFreeRouter(num_experts=4, top_k=2),
    "ensemble": EnsembleRouter(num_experts=3, votes=(1.0, 2.5, 0.5)),
    "rule": RuleRouter(num_experts=3, rule="mean", thresholds=(-0.2, 0.3)),
    "noisy": NoisyRouter(num_experts=4, top_k=2),
}
MODELS: dict[str, tuple[WrittenModule, Naive]] = {
    "linear": (Linear(D, OUT), naive_linear),
    "mlp-1": (Mlp(D, (5,), OUT), naive_mlp),
    "mlp-2": (Mlp(D, (5, 6), OUT), naive_mlp),
    "mlp-3": (Mlp(D, (5, 6, 2), OUT), naive_mlp),
    **{
        f"moe-top-{k}-of-{e}-hidden-{h}": (
            moe(k, h, e), naive_moe(SoftmaxRouter(num_experts=e, top_k=k))
        )
        for k, e in [(1, 1), (1, 4), (2, 4), (4, 4)]
        for h in (0, 5)
    },
    **{
        f"moe-{name}-{combine}-{'-'.join(map(str, hidden)) or 'linear'}": (
            mixture(ROUTERS[name], hidden, combine), naive_moe(ROUTERS[name], combine)
        )
        for name, combine, hidden in [
            *((name, "outputs", (5,)) for name in ROUTERS if name != "softmax"),
            *((name, "probabilities", ()) for name in ROUTERS),
            ("softmax", "outputs", (5, 6)), ("prior", "probabilities", (5,)),
        ]
    },
}  # fmt: skip
WRITTEN = {name: pair for name, pair in MODELS.items() if "noisy" not in name}
every_model = pytest.mark.parametrize(("model", "naive"), MODELS.values(), ids=MODELS)
every_written_model = pytest.mark.parametrize(("model", "naive"), WRITTEN.values(), ids=WRITTEN)


def random_stack(model: nn.Module, clients: int = C) -> Parameters:
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(clients, *p.shape, generator=generator, dtype=torch.float64)
        for name, p in model.named_parameters()
    }


def inputs() -> Tensor:
    return torch.randn(C, B, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def tensors(output: ModelOutput) -> list[Tensor]:
    """All parts, samples before experts as the loop has them."""
    parts = [output.y, output.features]
    if output.routing is not None:
        assert output.answers is not None
        one = output.y.dim() == 1
        routing = [part for part in output.routing if part is not None]
        parts += routing if one else [part.mT for part in routing]
        parts.append(output.answers if one else output.answers.movedim(-1, -3))
    return parts


def loop(naive: Naive, stack: Parameters, x_CBD: Tensor) -> list[Tensor]:
    """Each output as (C, B, ...), one client and one sample at a time."""
    clients = []
    for client, x_BD in enumerate(x_CBD):
        own = {name: value[client] for name, value in stack.items()}
        samples = [naive(own, x_D) for x_D in x_BD]
        clients.append([torch.stack(column) for column in zip(*samples, strict=True)])
    return [torch.stack(column) for column in zip(*clients, strict=True)]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
