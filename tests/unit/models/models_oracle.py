"""Every model written out for one sample at a time, in double precision."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedmoe.models import Linear, MixtureOfExperts, Mlp, ModelOutput, Parameters
from fedmoe.models.expert import Expert
from fedmoe.models.routers import ClientRouter, PriorRouter, Router, SoftmaxRouter
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
    """One sample through a mixture: y, features, the four parts of its routing, and answers."""

    def run(params: Parameters, x_D: Tensor) -> list[Tensor]:
        experts = range(router.num_experts)
        weight_E, probs_E, chosen_E, logits_E = naive_routing(router, params, x_D)
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
        return [y_O, features, weight_E, probs_E, chosen_E, logits_E, answers_EO]

    return run


def naive_routing(router: Router, params: Parameters, x_D: Tensor) -> list[Tensor]:
    """Weights, probabilities, chosen and logits of one sample."""
    experts = range(router.num_experts)
    if isinstance(router, ClientRouter):
        scores = params["router.assignment"].tolist()
        best = [scores.index(max(scores))]
        certain_E = torch.tensor([float(e in best) for e in experts], dtype=x_D.dtype)
        return [certain_E, certain_E, certain_E, 1e4 * (certain_E - 1)]
    logits_E = torch.zeros(router.num_experts, dtype=x_D.dtype)
    if "router.weight" in params:
        logits_E = dot(params["router.weight"], x_D, params["router.bias"])
    if "router.prior" in params:
        logits_E = logits_E + params["router.prior"]
    probs_E = logits_E.exp() / logits_E.exp().sum()
    ranking = sorted(experts, key=[-p for p in probs_E.tolist()].__getitem__)
    best = ranking[: getattr(router, "top_k", router.num_experts)]
    chosen_E = torch.tensor([float(e in best) for e in experts], dtype=x_D.dtype)
    kept = sum((probs_E[e] for e in best), start=torch.zeros(()))
    zero = torch.zeros((), dtype=x_D.dtype)
    weight_E = torch.stack([probs_E[e] / kept if e in best else zero for e in experts])
    return [weight_E, probs_E, chosen_E, logits_E]


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
            mixture(router, hidden, combine), naive_moe(router, combine)
        )
        for name, router in ROUTERS.items()
        for combine, hidden in [
            ("outputs", ()), ("probabilities", ()), ("probabilities", (5,)), ("outputs", (5, 6)),
        ]
    },
}  # fmt: skip
every_model = pytest.mark.parametrize(("model", "naive"), MODELS.values(), ids=MODELS)


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
        parts += [part if one else part.mT for part in output.routing]
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
