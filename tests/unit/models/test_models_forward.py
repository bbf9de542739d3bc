# Every model against a loop over clients and samples, in double precision.
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedmoe.models import (
    Linear,
    MixtureOfExperts,
    Mlp,
    ModelOutput,
    Parameters,
    StackedModule,
    stacked_forward,
)

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


def moe(top_k: int, hidden: int, num_experts: int = 4) -> StackedModule:
    return MixtureOfExperts(D, OUT, num_experts=num_experts, top_k=top_k, hidden=hidden)


MODELS: dict[str, tuple[StackedModule, Naive]] = {
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


@every_model
def test_stacked_parameters_give_what_a_loop_over_samples_gives(
    model: StackedModule, naive: Naive
) -> None:
    stack, x_CBD = random_stack(model), inputs()
    expected = loop(naive, stack, x_CBD)
    assert_same(tensors(model.apply_parameters(stack, x_CBD)), expected)
    assert_same(tensors(stacked_forward(model)(stack, x_CBD)), expected)

    def one_client(params: Parameters, x_BD: Tensor) -> list[Tensor]:
        return tensors(functional_call(model, params, (x_BD,)))

    assert_same(vmap(one_client)(stack, x_CBD), expected)


@every_model
def test_one_client_takes_a_batch_or_a_sample(model: StackedModule, naive: Naive) -> None:
    stack, x_CBD = random_stack(model), inputs()
    expected = loop(naive, stack, x_CBD)
    for client in range(C):
        own = {name: value[client] for name, value in stack.items()}
        batch = [column[client] for column in expected]
        assert_same(tensors(model.apply_parameters(own, x_CBD[client])), batch)
        assert_same(tensors(functional_call(model, own, (x_CBD[client],))), batch)
        for sample in range(B):
            first = [column[client, sample] for column in expected]
            assert_same(tensors(model.apply_parameters(own, x_CBD[client, sample])), first)
            assert_same(tensors(functional_call(model, own, (x_CBD[client, sample],))), first)


@every_model
def test_gradients_are_those_of_the_loop_and_no_client_sees_another(
    model: StackedModule, naive: Naive
) -> None:
    stack, x_CBD = random_stack(model), inputs()
    for value in stack.values():
        value.requires_grad_()
    cotangents = [torch.randn_like(column) for column in loop(naive, stack, x_CBD)[:3]]
    del cotangents[1]  # the representation is not trained through

    def gradients(outputs: list[Tensor]) -> tuple[Tensor, ...]:
        trained = [outputs[0], *outputs[2:3]]
        total = sum((a * b).sum() for a, b in zip(trained, cotangents, strict=True))
        assert isinstance(total, Tensor)
        return torch.autograd.grad(total, list(stack.values()))

    actual = gradients(tensors(model.apply_parameters(stack, x_CBD)))
    assert_same(list(actual), list(gradients(loop(naive, stack, x_CBD))))


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_experts_not_chosen_get_exactly_no_gradient(top_k: int, hidden: int) -> None:
    model = moe(top_k, hidden)
    params = {name: value[0].requires_grad_() for name, value in random_stack(model).items()}
    output = model.apply_parameters(params, inputs()[0, 0])
    grads = torch.autograd.grad(output.y.sum(), list(params.values()))
    assert output.gate_chosen is not None
    chosen_E = output.gate_chosen > 0
    assert chosen_E.sum() == top_k
    for name, grad in zip(params, grads, strict=True):
        if not name.startswith("gate"):
            assert (grad[~chosen_E] == 0).all()
        if name == "expert_bias":
            assert (grad[chosen_E] > 0).all()


@every_model
def test_forward_uses_the_modules_own_parameters(model: StackedModule, naive: Naive) -> None:
    x_BD = inputs()[0].float()
    own = {name: p.detach() for name, p in model.named_parameters()}
    expected = loop(naive, {k: v[None].double() for k, v in own.items()}, x_BD[None].double())
    for one, other in zip(tensors(model(x_BD)), expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other[0].float(), rtol=1e-5, atol=1e-6)
