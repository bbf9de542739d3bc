# Written derivatives against autograd through `apply_parameters`, which a loop over samples checks.
from collections.abc import Mapping

import pytest
import torch
from models_oracle import MODELS, Naive, assert_same, every_model, inputs, random_stack, tensors
from torch import Tensor, nn

from fedmoe.models import Linear, Mlp, ModelOutput, Parameters, StackedModule
from fedmoe.models.routers import balance_gradient, balance_loss, behind_softmax, softmax_top_k
from fedmoe.models.written import WrittenModule, kernel_of


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def by_autograd(
    model: WrittenModule, stack: Parameters, y_grad_COB: Tensor, probs_grad_CEB: Tensor | None
) -> Parameters:
    leaves = {name: value.clone().requires_grad_() for name, value in stack.items()}
    output = model.apply_parameters(leaves, inputs())
    total = (output.y * y_grad_COB.mT).sum()
    if probs_grad_CEB is not None:
        assert output.gate_probs is not None
        total = total + (output.gate_probs * probs_grad_CEB.mT).sum()
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


@every_model
def test_a_written_pass_gives_the_numbers_of_the_forward_pass(
    model: WrittenModule, naive: Naive
) -> None:
    stack, x_CBD = random_stack(model), inputs()
    output, run = model.apply_parameters(stack, x_CBD), model.written_pass(stack, x_CBD)
    parts = [part for part in (run.y_COB, run.probs_CEB, run.chosen_CEB) if part is not None]
    expected = [part for part in (output.y, *output[2:]) if part is not None]
    assert_same([part.mT for part in parts], expected)


@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("through_router", [False, True])
@every_model
def test_a_written_derivative_is_that_of_autograd(
    model: WrittenModule, naive: Naive, through_router: bool, keep: float
) -> None:
    stack = random_stack(model)
    run = model.written_pass(stack, inputs())
    y_grad = draw(*run.y_COB.shape, seed=5)
    probs_grad = None
    if through_router and run.probs_CEB is not None:
        probs_grad = draw(*run.probs_CEB.shape, seed=6)
    expected = by_autograd(model, stack, y_grad, probs_grad)
    into = {
        name: draw(*value.shape, seed=7) if keep else torch.full_like(value, torch.nan)
        for name, value in stack.items()
    }
    before = {name: value.clone() for name, value in into.items()}
    run.backward(y_grad, probs_grad, into, keep)
    for name, value in into.items():
        old = keep * before[name] if keep else 0.0
        assert_same([value], [old + expected[name]])


@every_model
def test_a_derivative_may_be_added_to_the_parameters_themselves(
    model: WrittenModule, naive: Naive
) -> None:
    stack = random_stack(model)
    run = model.written_pass(stack, inputs())
    y_grad = draw(*run.y_COB.shape, seed=5)
    probs_grad = None if run.probs_CEB is None else draw(*run.probs_CEB.shape, seed=6)
    gradient = by_autograd(model, stack, y_grad, probs_grad)
    moved = {name: value + gradient[name] for name, value in stack.items()}
    run.backward(y_grad, probs_grad, stack, 1.0)
    assert_same(list(stack.values()), list(moved.values()))


@every_model
def test_a_written_pass_leaves_inputs_and_parameters_alone(
    model: WrittenModule, naive: Naive
) -> None:
    stack, x_CBD = random_stack(model), inputs()
    run = model.written_pass(stack, x_CBD)
    into = {name: torch.zeros_like(value) for name, value in stack.items()}
    run.backward(torch.ones_like(run.y_COB), None, into, 0.0)
    assert torch.equal(x_CBD, inputs())
    for name, value in random_stack(model).items():
        assert torch.equal(stack[name], value)


@pytest.mark.parametrize("name", MODELS)
def test_built_in_models_have_a_kernel(name: str) -> None:
    model = MODELS[name][0]
    kernel = kernel_of(model)
    assert kernel is not None
    stack, x_CBD = random_stack(model), inputs()
    assert_same([kernel(stack, x_CBD).y_COB.mT], tensors(model.apply_parameters(stack, x_CBD))[:1])


def test_a_model_that_changes_the_forward_pass_alone_has_no_kernel() -> None:
    class Scaled(Linear):
        def apply_parameters(self, params: Mapping[str, Tensor], x: Tensor) -> ModelOutput:
            output = super().apply_parameters(params, x)
            return output._replace(y=2 * output.y)

    class Renamed(Mlp):
        pass

    class Both(Scaled):
        written_pass = Linear.written_pass

    assert kernel_of(Scaled(4, 3)) is None
    assert kernel_of(type("Child", (Scaled,), {})(4, 3)) is None
    assert kernel_of(Renamed(4, (5,), 3)) is not None
    assert kernel_of(Both(4, 3)) is not None
    assert kernel_of(nn.Linear(4, 3)) is None
    assert kernel_of(StackedModule()) is None


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_experts_may_lie_on_any_axis(top_k: int) -> None:
    logits = draw(3, 5, 4, seed=1)
    last, middle = softmax_top_k(logits, top_k), softmax_top_k(logits.mT, top_k, dim=1)
    assert_same([part.mT for part in middle], list(last))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_behind_softmax_is_the_derivative_of_both_softmaxes(top_k: int) -> None:
    logits = draw(3, 4, 5, seed=1).requires_grad_()
    cotangent = draw(3, 4, 5, seed=2)
    routing = softmax_top_k(logits, top_k, dim=1)
    for probs in (routing.probs, routing.weight):
        (expected,) = torch.autograd.grad((probs * cotangent).sum(), logits, retain_graph=True)
        assert_same([behind_softmax(cotangent, probs.detach())], [expected])


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balance_gradient_is_that_of_the_balance_loss(top_k: int) -> None:
    probs, chosen = softmax_top_k(draw(3, 4, 6, seed=1), top_k, dim=1)[1:]
    weight = draw(3, 6, seed=2).abs()
    weight[1, 4:] = 0.0
    weight = weight / weight.sum(dim=1, keepdim=True)
    probs.requires_grad_()
    loss = balance_loss(probs.mT, chosen.mT, weight)
    (expected,) = torch.autograd.grad(loss.sum(), probs)
    assert_same([balance_gradient(chosen, weight)], [expected])
