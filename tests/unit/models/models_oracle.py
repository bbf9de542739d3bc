"""Every model written out for one sample at a time, in double precision."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedmoe.models import Linear, MixtureOfExperts, Mlp, ModelOutput, Parameters
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


def naive_moe(top_k: int) -> Naive:
    def run(params: Parameters, x_D: Tensor) -> list[Tensor]:
        score_E = dot(params["gate_weight"], x_D, params["gate_bias"]).exp()
        probs_E = score_E / score_E.sum()
        ranking = sorted(range(len(probs_E)), key=[-p for p in probs_E.tolist()].__getitem__)
        best = ranking[:top_k]
        kept = sum((probs_E[e] for e in best), start=torch.zeros(()))
        y_O, features = torch.zeros(()), torch.zeros(())
        for e in best:
            hidden = x_D
            if "hidden_weight" in params:
                before = dot(params["hidden_weight"][e], x_D, params["hidden_bias"][e])
                hidden = torch.where(before > 0, before, 0.0)
            share = probs_E[e] / kept
            y_O = y_O + share * dot(params["expert_weight"][e], hidden, params["expert_bias"][e])
            features = features + share * hidden
        chosen_E = torch.tensor([float(e in best) for e in range(len(probs_E))])
        return [y_O, features if "hidden_weight" in params else x_D, probs_E, chosen_E.double()]

    return run


def moe(top_k: int, hidden: int, num_experts: int = 4) -> WrittenModule:
    return MixtureOfExperts(D, OUT, num_experts=num_experts, top_k=top_k, hidden=hidden)


MODELS: dict[str, tuple[WrittenModule, Naive]] = {
    "linear": (Linear(D, OUT), naive_linear),
    "mlp-1": (Mlp(D, (5,), OUT), naive_mlp),
    "mlp-2": (Mlp(D, (5, 6), OUT), naive_mlp),
    "mlp-3": (Mlp(D, (5, 6, 2), OUT), naive_mlp),
    **{
        f"moe-top-{k}-of-{e}-hidden-{h}": (moe(k, h, e), naive_moe(k))
        for k, e in [(1, 1), (1, 4), (2, 4), (4, 4)]
        for h in (0, 5)
    },
}
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
    return [value for value in output if value is not None]


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
