# What holds for mixtures beyond the numbers of their loops.
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from models_oracle import OUT, ROUTERS, B, C, D, inputs, mixture, random_stack
from torch import Tensor, nn
from torch.nn import functional

from fedmoe.data import Task
from fedmoe.errors import ConfigError
from fedmoe.models import Expert, Linear, MixtureOfExperts, ModelOutput, Parameters, stacked_forward
from fedmoe.models.combining import COMBINE
from fedmoe.models.routers import PriorRouter, SoftmaxRouter, SwitchRouter
from fedmoe.models.routing import StepContext
from fedmoe.models.written import Pass, kernel_of
from fedmoe.schema import TrainingConfig
from fedmoe.training.cohort import Cohort, train_cohort
from fedmoe.training.pool import Pool

CONFIG = TrainingConfig(
    optimizer="sgd", learning_rate=0.1, momentum=0.0, weight_decay=0.0, epochs=1, batch_size=4,
    reset_optimizer=True, cohort_size=100, num_threads=1, device="cpu",
)  # fmt: skip
TOP_2 = SoftmaxRouter(num_experts=4, top_k=2)


class Wavy(nn.Module):
    """A user's expert, of which nobody knows a stacked form."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(D, 5), nn.Linear(5, OUT)
        self.scale = nn.Parameter(torch.ones(()))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.dropout(torch.sin(self.inner(x)), self.dropout, self.training)
        y: Tensor = self.outer(hidden)
        return self.scale * y


class Scaled(Linear):
    """A user's expert with a written pass that knows nothing of experts."""

    def apply_parameters(
        self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> ModelOutput:
        output = super().apply_parameters(params, x)
        return output._replace(y=3 * output.y)

    def written_pass(  # type: ignore[override]
        self, params: Mapping[str, Tensor], x_CBD: Tensor, context: StepContext | None = None
    ) -> Pass:
        inner = super().written_pass(params, x_CBD)
        assert params["weight"].dim() == 3

        class Tripled:
            y_COB, routing = 3 * inner.y_COB, None

            def backward(
                self, y_grad_COB: Tensor, logits_grad: Any, into: Parameters, keep: float
            ) -> None:
                inner.backward(3 * y_grad_COB, logits_grad, into, keep)

        return Tripled()


def of(expert: Any, router: Any = TOP_2, **changed: Any) -> MixtureOfExperts:
    own = Expert(0, module=lambda features, outputs: expert()).times(router.num_experts)
    return MixtureOfExperts(D, OUT, experts=own, router=router, **changed)


# ------------------------------------------------------------------------- parameters


def test_every_parameter_has_the_experts_first() -> None:
    for name, router in ROUTERS.items():
        for hidden in [(), (5, 6)]:
            model = mixture(router, hidden)
            for key, value in model.named_parameters():
                assert key.startswith(("experts.", "router.")), name
                assert value.shape[0] == router.num_experts
    shapes = {name: tuple(p.shape) for name, p in mixture(TOP_2, (5,)).named_parameters()}
    assert shapes == {
        "router.weight": (4, D), "router.bias": (4,), "experts.weights.0": (4, 5, D),
        "experts.biases.0": (4, 5), "experts.weights.1": (4, OUT, 5), "experts.biases.1": (4, OUT),
    }  # fmt: skip
    assert {name for name, _ in mixture(ROUTERS["rule"]).named_parameters()} == {
        "experts.weight", "experts.bias",
    }  # fmt: skip


def test_parameters_of_a_users_expert_keep_their_names_and_nothing_else_is_one() -> None:
    names = {name: tuple(p.shape) for name, p in of(Wavy).named_parameters()}
    assert names == {
        "router.weight": (4, D), "router.bias": (4,), "experts.inner.weight": (4, 5, D),
        "experts.inner.bias": (4, 5), "experts.outer.weight": (4, OUT, 5),
        "experts.outer.bias": (4, OUT), "experts.scale": (4,),
    }  # fmt: skip


def test_each_expert_is_drawn_by_itself() -> None:
    for expert in (Wavy, lambda: Linear(D, OUT)):
        for name, value in of(expert).named_parameters():
            if name.startswith("experts.") and not name.endswith("scale"):
                for e in range(1, 4):
                    assert not torch.isclose(value[0], value[e]).any()
    prior = dict(mixture(PriorRouter(num_experts=3)).named_parameters())["router.prior"]
    assert prior.tolist() == [0.0, 0.0, 0.0]


def test_an_expert_with_buffers_is_refused() -> None:
    with pytest.raises(ConfigError, match="Sequential has buffers"):
        of(lambda: nn.Sequential(nn.Linear(D, OUT), nn.BatchNorm1d(OUT)))


def test_a_router_for_another_number_of_experts_is_refused() -> None:
    with pytest.raises(ConfigError, match="a router for 4 experts, but there are 3"):
        MixtureOfExperts(D, OUT, experts=Expert(0).times(3), router=TOP_2)


# --------------------------------------------------------------------------- experts


@pytest.mark.parametrize("combine", ["outputs", "probabilities"])
@pytest.mark.parametrize("expert", [Wavy, lambda: Scaled(D, OUT)], ids=["module", "written"])
def test_any_module_can_be_an_expert(expert: Any, combine: Any) -> None:
    model = of(expert, combine=combine)
    stack, x_CBD = random_stack(model), inputs()
    output = model.apply_parameters(stack, x_CBD)
    assert output.routing is not None
    assert output.answers is not None
    for client in range(C):
        for e in range(4):
            one = expert()
            own = {
                name.removeprefix("experts."): value[client, e]
                for name, value in stack.items()
                if name.startswith("experts.")
            }
            expected = torch.func.functional_call(one, own, (x_CBD[client],))
            y_BO = expected.y if isinstance(expected, ModelOutput) else expected
            torch.testing.assert_close(output.answers[client, e].mT, y_BO)
    y = COMBINE[combine].mix(output.answers, output.routing.weight).y
    torch.testing.assert_close(output.y, y.mT)
    alone = model.apply_parameters({n: v[0] for n, v in stack.items()}, x_CBD[0])
    torch.testing.assert_close(alone.y, output.y[0])


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_an_expert_with_a_written_pass_of_its_own_is_used_with_it(keep: float) -> None:
    model = of(lambda: Scaled(D, OUT))
    kernel = kernel_of(model)
    assert kernel is not None
    stack, x_CBD = random_stack(model), inputs()
    leaves = {name: value.clone().requires_grad_() for name, value in stack.items()}
    run = kernel(stack, x_CBD)
    y_grad = torch.randn_like(run.y_COB)
    total = (model.apply_parameters(leaves, x_CBD).y.mT * y_grad).sum()
    expected = torch.autograd.grad(total, list(leaves.values()))
    into = {name: torch.ones_like(value) for name, value in stack.items()}
    run.backward(y_grad, None, into, keep)
    for found, grad in zip(into.values(), expected, strict=True):
        torch.testing.assert_close(found, keep + grad)


def test_only_what_knows_its_derivative_is_written() -> None:
    class Changed(Linear):
        def apply_parameters(self, params: Any, x: Tensor, context: Any = None) -> ModelOutput:
            return super().apply_parameters(params, x)

    assert kernel_of(of(lambda: Linear(D, OUT))) is not None
    assert kernel_of(of(lambda: Changed(D, OUT))) is None
    assert kernel_of(of(Wavy)) is None
    assert kernel_of(of(lambda: Linear(D, OUT), ROUTERS["noisy"])) is None


def test_dropout_of_an_expert_follows_the_mode_and_is_known_of() -> None:
    model = of(lambda: Wavy(dropout=0.5))
    assert model.draws
    assert not of(lambda: Linear(D, OUT)).draws
    stack, x_CBD = random_stack(model), inputs()
    forward = stacked_forward(model.eval())
    assert torch.equal(forward(stack, x_CBD).y, forward(stack, x_CBD).y)
    forward = stacked_forward(model.train())
    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(forward(stack, x_CBD).y, forward(stack, x_CBD).y)


def test_training_with_dropout_repeats_whatever_was_drawn_before() -> None:
    for expert in (
        lambda: Wavy(dropout=0.5),
        lambda: of(lambda: Wavy(dropout=0.5)),  # a mixture as an expert
    ):
        model = of(expert)
        cohort = Cohort(
            client_C=np.arange(2), rows_Cn=np.arange(12).reshape(2, 6), count_C=np.full(2, 6),
            params={name: p.detach().expand(2, *p.shape) for name, p in model.named_parameters()},
            seed=0, round=1, epochs_C=np.ones(2, dtype=np.int64), lr_C=torch.ones(2),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        pool = Pool(torch.randn(12, D, generator=generator), torch.arange(12) % OUT)
        task = Task(kind="classification", num_features=D, num_outputs=OUT)
        found = []
        with torch.random.fork_rng(devices=[]):
            for seed in (1, 2):
                torch.manual_seed(seed)
                found.append(train_cohort(model, task, pool, CONFIG, cohort).params)
        for name, value in found[0].items():
            assert torch.equal(value, found[1][name])


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("expert", [Wavy, lambda: Linear(D, OUT)], ids=["module", "linear"])
def test_answers_are_each_experts_and_the_gates_without_what_is_private(
    expert: Any, name: str
) -> None:
    model = of(expert, ROUTERS[name])
    stack, x_CBD = random_stack(model), inputs()
    answers, logits = model.answers(stack, x_CBD)
    output = model.apply_parameters(stack, x_CBD)
    torch.testing.assert_close(answers, output.answers)
    assert logits.shape == (C, model.num_experts, B)
    shared = torch.zeros_like(logits)
    if "router.weight" in stack:
        shared = stack["router.weight"] @ x_CBD.mT + stack["router.bias"].unsqueeze(2)
    torch.testing.assert_close(logits, shared)


# --------------------------------------------------------------------------- combining


def test_cross_entropy_of_combined_probabilities_is_the_mixtures_likelihood() -> None:
    model = mixture(PriorRouter(num_experts=3), (5,), "probabilities")
    leaves = {name: value.requires_grad_() for name, value in random_stack(model).items()}
    output = model.apply_parameters(leaves, inputs())
    target = torch.randint(0, OUT, (C, B), generator=torch.Generator().manual_seed(0))
    loss = functional.cross_entropy(output.y.flatten(0, 1), target.flatten(), reduction="sum")
    assert output.answers is not None
    assert output.routing is not None
    likelihood = torch.zeros(()).double()
    for c in range(C):
        for b in range(B):
            probs_EO = output.answers[c, :, :, b].softmax(dim=1)
            mixed = sum(
                output.routing.weight[c, e, b] * probs_EO[e, target[c, b]] for e in range(3)
            )
            likelihood = likelihood - torch.as_tensor(mixed).log()
    torch.testing.assert_close(loss, likelihood)

    # The gradient by an expert's answer is its own times its posterior.
    (found,) = torch.autograd.grad(loss, output.answers)
    for c in range(C):
        for b in range(B):
            probs_EO = output.answers[c, :, :, b].softmax(dim=1).detach()
            joint = output.routing.weight[c, :, b].detach() * probs_EO[:, target[c, b]]
            for e in range(3):
                hit = functional.one_hot(target[c, b], OUT)
                expected = joint[e] / joint.sum() * (probs_EO[e] - hit)
                torch.testing.assert_close(found[c, e, :, b], expected)


@pytest.mark.parametrize("combine", ["outputs", "probabilities"])
def test_nobody_answers_for_a_dropped_sample(combine: Any) -> None:
    model = mixture(SwitchRouter(num_experts=4, capacity_factor=0.5), (5,), combine)
    stack, x_CBD = random_stack(model), inputs()
    for name in ("router.weight", "router.bias"):
        stack[name].zero_()  # everybody wants the first expert, which has room for one
    context = StepContext(torch.full((C, B), 1 / B).double(), torch.arange(C))
    run = model.written_pass(stack, x_CBD, context)
    assert run.routing.chosen.sum(dim=1).tolist() == [[1.0] + [0.0] * (B - 1)] * C
    assert not run.y_COB[..., 1:].any()
    into = {name: torch.zeros_like(value) for name, value in stack.items()}
    y_grad = torch.ones_like(run.y_COB)
    y_grad[..., 0] = 0.0
    run.backward(y_grad, None, into, 0.0)
    for value in into.values():
        assert not value.any()
    leaves = {name: value.requires_grad_() for name, value in stack.items()}
    y = model.apply_parameters(leaves, x_CBD, context).y
    for grad in torch.autograd.grad(y.sum(), list(leaves.values())):
        assert grad.isfinite().all()


def test_probabilities_of_extreme_answers_stay_finite() -> None:
    answers = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])[None, :, :, None]
    weight = torch.tensor([1.0, 0.0])[None, :, None]
    mixed = COMBINE["probabilities"].mix(answers, weight)
    assert mixed.y.flatten().tolist() == [0.0, -2e4]
    for y_grad in (torch.tensor([-1.0, 1.0]), torch.tensor([1.0, -1.0])):
        grads = COMBINE["probabilities"].behind(mixed, weight, y_grad[None, :, None])
        for grad in grads:
            assert grad.isfinite().all()
    # An expert with next to no weight whose answer alone fits gets the whole posterior.
    weight = torch.tensor([1.0, 1e-30])[None, :, None]
    mixed = COMBINE["probabilities"].mix(answers / 100, weight)
    assert mixed.y[0, 1, 0].item() == pytest.approx(math.log(1e-30), rel=1e-5)
    grads = COMBINE["probabilities"].behind(mixed, weight, torch.tensor([0.0, -1.0])[None, :, None])
    assert grads[0].isfinite().all()
    assert grads[0][0, 0].abs().max() < 1e-6
