# The two ways to a step's gradient, and the pieces that the written way is made of.
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from training_oracle import HIDDEN, OUT, Setup, make_config

from fedmoe.data import Task
from fedmoe.models import Parameters, RouterLosses, stacked_forward
from fedmoe.models.written import kernel_of
from fedmoe.training.cohort import train_cohort
from fedmoe.training.gradients import Found, Gradient, Written
from fedmoe.training.losses import (
    cross_entropy,
    cross_entropy_gradient,
    sample_loss,
    squared_error,
    squared_error_gradient,
    written_loss,
)
from fedmoe.training.steps import Batch, ByAutograd, ByHand, differentiation
from fedmoe.training.terms import (
    Alignment,
    Proximal,
    Rehearsal,
    Step,
    copy_rows,
    take,
    take_rows,
)

WRITTEN = ("linear", "mlp", "moe")
LOSSES = RouterLosses(balance=0.2)


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def a_setup(model: str, kind: Any = "classification", **changed: Any) -> Setup:
    return Setup(
        model=model, kind=kind, config=make_config(), counts=[8, 7, 3], epochs=[1, 1, 1], **changed
    )


def batch_of(setup: Setup) -> Batch:
    """One batch of all clients; the last samples of the later ones are padding."""
    rows = torch.arange(1, 1 + 3 * 6).view(3, 6)
    real = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
    x, target = setup.pool.batch(rows)
    key = torch.arange(3)
    return Batch(x, target, real.double() / real.sum(dim=1, keepdim=True), key)


@dataclass(frozen=True)
class Distance:
    """A user's term, which has no written gradient: (w - anchor)^4 summed."""

    anchor: Parameters

    def __call__(self, step: Step) -> Tensor:
        total = step.weight.new_zeros(step.clients)
        for name, value in step.params.items():
            away = value - self.anchor[name][: step.clients]
            total = total + away.pow(4).reshape(step.clients, -1).sum(dim=1)
        return total

    def take(self, index: Tensor) -> "Distance":
        return Distance(take(self.anchor, index))


def alignment(setup: Setup, width: int) -> Alignment:
    """Prototypes of two of three classes."""
    known = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64).expand(setup.clients, -1)
    return Alignment(setup.draw(8, setup.clients, OUT, width), known, 0.7)


@pytest.mark.parametrize("active", [3, 2])
@pytest.mark.parametrize("besides", [False, True])
@pytest.mark.parametrize(("model", "width"), [("linear", 3), ("mlp", HIDDEN), ("moe", HIDDEN)])
def test_a_term_of_the_representation_comes_to_the_same_gradient(
    model: str, width: int, besides: bool, active: int
) -> None:
    """By hand where the model gives its representation; with other terms and twice, too."""
    setup = a_setup(model)
    terms: list[Any] = [alignment(setup, width)]
    if besides:
        terms += [Proximal(setup.anchor, 0.3), replace(terms[0], strength=0.2)]
    chosen = differentiation(setup.module, setup.task, terms, LOSSES)
    assert isinstance(chosen, ByAutograd if model == "moe" else ByHand)
    other = ByAutograd(stacked_forward(setup.module), sample_loss(setup.task), terms, LOSSES)
    params = {name: value[:active] for name, value in setup.start.items()}
    x, target, weight, key, _ = batch_of(setup)
    key_A = None if key is None else key[:active]
    batch = Batch(x[:active], target[:active], weight[:active], key_A)
    (loss_A, gradient), (expected_A, expected) = chosen(params, batch), other(params, batch)
    same(loss_A, expected_A)
    found = gradient.tensors()
    for name, value in expected.tensors().items():
        same(found[name], value)
    scale_C = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)[:active]
    into = {name: value.clone() for name, value in params.items()}
    chosen(params, batch)[1].add_to(into, keep=0.9, scale_C=scale_C)
    for name, value in expected.tensors().items():
        scaled = value * scale_C.view(-1, *[1] * (value.dim() - 1))
        same(into[name], 0.9 * params[name] + scaled)


@pytest.mark.parametrize("terms", ["none", "proximal", "rehearsal", "both"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("model", WRITTEN)
def test_both_ways_come_to_the_same_gradient(model: str, kind: Any, terms: str) -> None:
    if kind == "regression" and terms in {"rehearsal", "both"}:
        return
    setup = a_setup(model, kind)
    known: list[Any] = []
    if terms in {"proximal", "both"}:
        known.append(Proximal(setup.anchor, 0.3))
    if terms in {"rehearsal", "both"}:
        weight = setup.prototype_weight
        target = torch.rand(*weight.shape, weight.shape[1]).to(weight).softmax(dim=-1)
        known.append(Rehearsal(setup.prototypes, target, weight))
    chosen = differentiation(setup.module, setup.task, known, LOSSES)
    assert isinstance(chosen, ByHand)
    other = ByAutograd(stacked_forward(setup.module), sample_loss(setup.task), known, LOSSES)
    loss_A, gradient = chosen(setup.start, batch_of(setup))
    expected_A, expected = other(setup.start, batch_of(setup))
    same(loss_A, expected_A)
    found = gradient.tensors()
    for name, value in expected.tensors().items():
        same(found[name], value)


def test_a_term_or_a_model_without_a_gradient_of_its_own_goes_through_autograd() -> None:
    class Doubled(Proximal):
        """Its inherited gradient is not its own."""

        def __call__(self, step: Step) -> Tensor:
            return 2 * super().__call__(step)

    class Halved(Alignment):
        """Likewise."""

        def __call__(self, step: Step) -> Tensor:
            return super().__call__(step) / 2

    nothing = torch.zeros(1)
    known = Proximal({}, 0.1)
    unknown: list[Any] = [Distance({}), Doubled({}, 0.1), Halved(nothing, nothing, 0.1)]
    cases: list[tuple[str, list[Any], type]] = [
        ("mlp", [], ByHand), ("mlp", [known], ByHand), ("custom", [], ByAutograd),
        ("custom", [Alignment(nothing, nothing, 0.1)], ByAutograd),
        *(("mlp", [known, term], ByAutograd) for term in unknown),
    ]  # fmt: skip
    for model, terms, kind in cases:
        setup = a_setup(model)
        assert isinstance(differentiation(setup.module, setup.task, terms, RouterLosses()), kind)


@pytest.mark.parametrize("model", WRITTEN)
def test_a_users_term_is_trained_on(model: str) -> None:
    setup = a_setup(model)
    cohort = replace(setup.cohort(), terms=[Distance(setup.anchor)])
    trained = train_cohort(setup.module, setup.task, setup.pool, setup.config, cohort, LOSSES)
    by_autograd = ByAutograd(stacked_forward(setup.module), cross_entropy, cohort.terms, LOSSES)
    params = {name: value.clone() for name, value in setup.start.items()}
    for client in range(setup.clients):  # 8, 7 and 3 samples are one batch each
        own = {name: value[client : client + 1] for name, value in params.items()}
        x, target = setup.pool.batch(setup.batches(client)[0][None])
        share = torch.full(target.shape, 1 / target.shape[1], dtype=torch.float64)
        batch = Batch(x, target, share, torch.zeros(1).long())
        alone = replace(by_autograd, terms=[cohort.terms[0].take(torch.tensor([client]))])
        grads = alone(own, batch)[1].tensors()
        for name, value in own.items():
            moved = value[0] - setup.lr_C[client] * grads[name][0]
            same(trained.params[name][client], moved)


# ------------------------------------------------------------------------- gradients


def gradients(setup: Setup) -> dict[str, Gradient]:
    """The same gradient in both forms."""
    kernel = kernel_of(setup.module)
    assert kernel is not None
    run = kernel(setup.start, batch_of(setup).x)
    logits_grad = None if run.routing is None else draw(*run.routing.logits.shape, seed=4)
    written = Written(setup.start, run, draw(*run.y_COB.shape, seed=3), logits_grad)
    return {"found": Found(written.tensors()), "written": written}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("keep", [1.0, 0.9])
@pytest.mark.parametrize("form", ["found", "written"])
@pytest.mark.parametrize("model", WRITTEN)
def test_gradients_are_added_with_a_scale(model: str, form: str, keep: float, scaled: bool) -> None:
    setup = a_setup(model)
    both = gradients(setup)
    expected, into = both["found"].tensors(), {k: v.clone() for k, v in setup.anchor.items()}
    before = {name: value.clone() for name, value in expected.items()}
    scale_C = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    both[form].add_to(into, keep=keep, scale_C=scale_C if scaled else None)
    for name, value in into.items():
        for client in range(setup.clients):
            scale = scale_C[client] if scaled else 1.0
            move = keep * setup.anchor[name][client] + scale * before[name][client]
            same(value[client], move)
        assert torch.equal(expected[name], before[name])


def test_the_norm_is_over_all_parameters_of_a_client() -> None:
    found = Found({"a": draw(3, 4, 2, seed=1), "b": draw(3, seed=2), "c": draw(3, 5, seed=3)})
    for client, norm in enumerate(found.norm_C().tolist()):
        squares = [float(v) ** 2 for g in found.by_name.values() for v in g[client].flatten()]
        assert norm == pytest.approx(math.sqrt(sum(squares)), rel=1e-12)


# ---------------------------------------------------------------------------- losses


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_written_losses_are_the_losses_and_their_gradients(kind: Any) -> None:
    y_COB = (5 * draw(3, OUT, 6, seed=1)).requires_grad_()
    target = draw(3, 6, OUT, seed=2)
    weight_CB = draw(3, 6, seed=3)
    if kind == "classification":
        target = target.argmax(dim=2)
    task = Task(kind=kind, num_features=1, num_outputs=OUT)
    with torch.no_grad():
        loss_CB, gradient_COB = written_loss(task)(y_COB, target, weight_CB)
    expected_CB = sample_loss(task)(y_COB.mT, target)
    (expected_COB,) = torch.autograd.grad((expected_CB * weight_CB).sum(), y_COB)
    same(loss_CB, expected_CB.detach())
    same(gradient_COB, expected_COB)


def test_extreme_logits_have_a_finite_loss_and_gradient() -> None:
    y_COB = torch.tensor([[[1e4], [-1e4]]])
    loss, gradient = cross_entropy_gradient(y_COB, torch.ones(1, 1).long(), torch.ones(1, 1))
    assert loss.item() == 2e4
    assert gradient.flatten().tolist() == [1.0, -1.0]


def test_predictions_of_another_shape_than_the_targets_are_refused() -> None:
    y_COB, weight = torch.zeros(2, 3, 5), torch.ones(2, 5)
    with pytest.raises(ValueError, match=r"\(2, 5, 3\).*\(2, 5, 1\)"):
        squared_error_gradient(y_COB, torch.zeros(2, 5, 1), weight)
    with pytest.raises(ValueError, match=r"\(2, 5, 3\)"):
        squared_error(y_COB.mT, torch.zeros(2, 5, 1))


# ------------------------------------------------------------------------------ rows


def test_rows_are_taken_as_a_view_where_all_are_one_and_copied_on_demand() -> None:
    one, index = draw(1, 2, 3, seed=1), torch.tensor([3, 0])
    broadcast, own = one.expand(5, 2, 3), draw(5, 2, 3, seed=2)
    view = take_rows(broadcast, index)
    assert view.stride(0) == 0
    assert view.data_ptr() == one.data_ptr()
    assert torch.equal(view, broadcast[index])
    for value in (broadcast, own):
        copied = copy_rows(value, index)
        assert copied.is_contiguous()
        assert torch.equal(copied, value[index])
        copied.zero_()
        assert value.any(dim=-1).all()
