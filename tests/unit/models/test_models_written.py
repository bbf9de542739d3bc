# Written derivatives against autograd through `apply_parameters`, which a loop over samples checks.
from collections.abc import Mapping

import pytest
import torch
from models_oracle import (
    OUT,
    WRITTEN,
    B,
    C,
    D,
    Naive,
    assert_same,
    every_written_model,
    inputs,
    random_stack,
    tensors,
)
from torch import Tensor, nn

from fedmoe.models import Linear, Mlp, ModelOutput, Parameters, StackedModule
from fedmoe.models.routing import StepContext, behind_softmax, softmax_top_k
from fedmoe.models.written import WrittenModule, kernel_of


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def by_autograd(
    model: WrittenModule,
    stack: Parameters,
    y_grad_COB: Tensor,
    logits_grad_CEB: Tensor | None,
    context: StepContext | None = None,
) -> Parameters:
    leaves = {name: value.clone().requires_grad_() for name, value in stack.items()}
    output = model.apply_parameters(leaves, inputs(), context)
    total = (output.y * y_grad_COB.mT).sum()
    if logits_grad_CEB is not None:
        assert output.routing is not None
        total = total + (output.routing.logits * logits_grad_CEB).sum()
    found = torch.autograd.grad(
        total, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def step() -> StepContext:
    """One client has a full batch, one is padded, and one has no samples at all."""
    counts = torch.tensor([B, B - 3, 0])[:, None]
    weight = (torch.arange(B) < counts).double() / counts.clamp_min(1)
    return StepContext(weight, torch.arange(1, C + 1))


in_training = pytest.mark.parametrize("context", [None, step()], ids=["evaluation", "training"])


@in_training
@every_written_model
def test_a_written_pass_gives_the_numbers_of_the_forward_pass(
    model: WrittenModule, naive: Naive, context: StepContext | None
) -> None:
    stack, x_CBD = random_stack(model), inputs()
    output = model.apply_parameters(stack, x_CBD, context)
    run = model.written_pass(stack, x_CBD, context)
    assert_same([run.y_COB.mT], [output.y])
    for part, expected in zip(run.routing or (), output.routing or (), strict=True):
        assert (part is None) == (expected is None)
        if part is not None and expected is not None:
            assert_same([part], [expected])


@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("through_router", [False, True])
@in_training
@every_written_model
def test_a_written_derivative_is_that_of_autograd(
    model: WrittenModule,
    naive: Naive,
    through_router: bool,
    keep: float,
    context: StepContext | None,
) -> None:
    stack = random_stack(model)
    run = model.written_pass(stack, inputs(), context)
    y_grad = draw(*run.y_COB.shape, seed=5)
    logits_grad = None
    if through_router and run.routing is not None:
        logits_grad = draw(*run.routing.logits.shape, seed=6)
    expected = by_autograd(model, stack, y_grad, logits_grad, context)
    into = {
        name: draw(*value.shape, seed=7) if keep else torch.full_like(value, torch.nan)
        for name, value in stack.items()
    }
    before = {name: value.clone() for name, value in into.items()}
    run.backward(y_grad, logits_grad, into, keep)
    for name, value in into.items():
        old = keep * before[name] if keep else 0.0
        assert_same([value], [old + expected[name]])


@every_written_model
def test_a_derivative_may_be_added_to_the_parameters_themselves(
    model: WrittenModule, naive: Naive
) -> None:
    stack = random_stack(model)
    run = model.written_pass(stack, inputs())
    y_grad = draw(*run.y_COB.shape, seed=5)
    logits_grad = None if run.routing is None else draw(*run.routing.logits.shape, seed=6)
    gradient = by_autograd(model, stack, y_grad, logits_grad)
    moved = {name: value + gradient[name] for name, value in stack.items()}
    run.backward(y_grad, logits_grad, stack, 1.0)
    assert_same(list(stack.values()), list(moved.values()))


REPRESENTING = [Linear(D, OUT), Mlp(D, (5,), OUT), Mlp(D, (6, 5, 2), OUT)]


@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("model", REPRESENTING, ids=["linear", "mlp", "deep"])
def test_a_gradient_by_the_representation_goes_behind_it(model: Linear | Mlp, keep: float) -> None:
    stack = random_stack(model)
    run = model.written_pass(stack, inputs())
    output = model.apply_parameters(stack, inputs())
    assert model.gives_features
    assert_same([run.features_CFB.mT], [output.features])
    y_grad, features_grad = draw(*run.y_COB.shape, seed=5), draw(*run.features_CFB.shape, seed=6)
    leaves = {name: value.clone().requires_grad_() for name, value in stack.items()}
    output = model.apply_parameters(leaves, inputs())
    total = (output.y * y_grad.mT).sum() + (output.features * features_grad.mT).sum()
    found = torch.autograd.grad(total, list(leaves.values()))
    into = {
        name: draw(*value.shape, seed=7) if keep else torch.full_like(value, torch.nan)
        for name, value in stack.items()
    }
    before = {name: value.clone() for name, value in into.items()}
    given = features_grad.clone()
    run.backward_with(y_grad, features_grad, into, keep)
    assert torch.equal(features_grad, given)
    for (name, value), expected in zip(into.items(), found, strict=True):
        assert_same([value], [(keep * before[name] if keep else 0.0) + expected])


@every_written_model
def test_only_models_that_say_so_give_their_representation(
    model: WrittenModule, naive: Naive
) -> None:
    run = model.written_pass(random_stack(model), inputs())
    gives = hasattr(run, "features_CFB") and hasattr(run, "backward_with")
    assert model.gives_features == gives


@every_written_model
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


@pytest.mark.parametrize("name", WRITTEN)
def test_built_in_models_have_a_kernel(name: str) -> None:
    model = WRITTEN[name][0]
    kernel = kernel_of(model)
    assert kernel is not None
    stack, x_CBD = random_stack(model), inputs()
    assert_same([kernel(stack, x_CBD).y_COB.mT], tensors(model.apply_parameters(stack, x_CBD))[:1])


def test_a_model_that_changes_the_forward_pass_alone_has_no_kernel() -> None:
    class Scaled(Linear):
        def apply_parameters(
            self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
        ) -> ModelOutput:
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
def test_behind_softmax_is_the_derivative_of_both_softmaxes(top_k: int) -> None:
    logits = draw(3, 4, 5, seed=1).requires_grad_()
    cotangent = draw(3, 4, 5, seed=2)
    routing = softmax_top_k(logits, top_k)
    for probs in (routing.probs, routing.weight):
        (expected,) = torch.autograd.grad((probs * cotangent).sum(), logits, retain_graph=True)
        assert_same([behind_softmax(cotangent, probs.detach())], [expected])
