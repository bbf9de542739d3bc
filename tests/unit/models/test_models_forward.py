# Every model against a loop over clients and samples, in double precision.
import pytest
import torch
from models_oracle import (
    C,
    Naive,
    assert_same,
    every_model,
    inputs,
    loop,
    moe,
    random_stack,
    tensors,
)
from torch import Tensor
from torch.func import functional_call, vmap

from fedmoe.models import Parameters, StackedModule, stacked_forward


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
        for sample in range(len(x_CBD[0])):
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
    cotangents = [torch.randn_like(column) for column in loop(naive, stack, x_CBD)]

    def gradients(outputs: list[Tensor]) -> tuple[Tensor, ...]:
        total = sum((a * b).sum() for a, b in zip(outputs, cotangents, strict=True))
        assert isinstance(total, Tensor)
        return torch.autograd.grad(
            total, list(stack.values()), allow_unused=True, materialize_grads=True
        )

    actual = gradients(tensors(model.apply_parameters(stack, x_CBD)))
    assert_same(list(actual), list(gradients(loop(naive, stack, x_CBD))))


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_experts_not_chosen_get_exactly_no_gradient(top_k: int, hidden: int) -> None:
    model = moe(top_k, hidden)
    params = {name: value[0].requires_grad_() for name, value in random_stack(model).items()}
    output = model.apply_parameters(params, inputs()[0, 0])
    grads = torch.autograd.grad(output.y.sum(), list(params.values()))
    assert output.routing is not None
    chosen_E = output.routing.chosen > 0
    assert chosen_E.sum() == top_k
    for name, grad in zip(params, grads, strict=True):
        if name.startswith("experts."):
            assert (grad[~chosen_E] == 0).all()
        if name in {"experts.bias", "experts.biases.1"}:
            assert (grad[chosen_E] > 0).all()


@every_model
def test_forward_uses_the_modules_own_parameters(model: StackedModule, naive: Naive) -> None:
    x_BD = inputs()[0].float()
    own = {name: p.detach() for name, p in model.named_parameters()}
    expected = loop(naive, {k: v[None].double() for k, v in own.items()}, x_BD[None].double())
    for one, other in zip(tensors(model(x_BD)), expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other[0].float(), rtol=1e-5, atol=1e-6)
