# Experts on their own samples give what all experts on all samples give.
from typing import Any

import pytest
import torch
from models_oracle import ROUTERS, B, C, inputs, mixture, random_stack
from torch import Tensor

from fedmoe.models import Parameters, sparse
from fedmoe.models.routers import ClientRouter, Router, SoftmaxRouter
from fedmoe.models.routing import StepContext
from fedmoe.models.written import Pass

SPARSE: dict[str, Router] = {
    **{name: ROUTERS[name] for name in ("switch", "expert-choice", "loss-free", "client", "rule")},
    "softmax-1": SoftmaxRouter(num_experts=4, top_k=1),
    "softmax-2": SoftmaxRouter(num_experts=6, top_k=2),
    "softmax-all": SoftmaxRouter(num_experts=3, top_k=3),
}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[sparse.SparsePass]:
    """Every pass runs sparse; those that did."""
    made: list[sparse.SparsePass] = []

    class Recorded(sparse.SparsePass):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("fedmoe.models.experts.may_pay", lambda active, experts: True)
    monkeypatch.setattr("fedmoe.models.experts.SparsePass", Recorded)
    monkeypatch.setattr(sparse, "pays", lambda dense, sparse: True)
    monkeypatch.setattr(sparse, "_LEAST_SAVED", 0)
    return made


def step() -> StepContext:
    counts = torch.tensor([B, B - 3, 0])[:, None]
    weight = (torch.arange(B) < counts).double() / counts.clamp_min(1)
    return StepContext(weight, torch.arange(C))


def setting(router: Router, hidden: Any, combine: Any, case: str) -> tuple[Any, Parameters]:
    model = mixture(router, hidden, combine)
    stack = random_stack(model)
    for name, value in stack.items():
        if case == "collapsed" and name in {"router.bias", "router.assignment"}:
            value[:, -1] = 50.0
        if case == "dead" and name == "router.bias":
            value[1, :-1] = -50.0  # of one client only
    return model, stack


def assert_as_dense(run: Pass, dense: Pass, stack: Parameters, keep: float) -> None:
    torch.testing.assert_close(run.y_COB, dense.y_COB, rtol=1e-9, atol=1e-9)
    generator = torch.Generator().manual_seed(5)
    y_grad = torch.randn(*run.y_COB.shape, generator=generator, dtype=torch.float64)
    into, expected = (
        {name: torch.full_like(value, 0.7 if keep else torch.nan) for name, value in stack.items()}
        for _ in range(2)
    )
    run.backward(y_grad, None, into, keep)
    dense.backward(y_grad, None, expected, keep)
    for name, value in into.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("case", ["random", "collapsed", "dead"])
@pytest.mark.parametrize(
    ("hidden", "combine"),
    [((), "outputs"), ((5,), "outputs"), ((5, 6), "outputs"), ((5,), "probabilities")],
)
@pytest.mark.parametrize("name", SPARSE)
def test_a_sparse_pass_is_the_dense_one(
    name: str, hidden: Any, combine: Any, case: str, keep: float, passes: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model, stack = setting(SPARSE[name], hidden, combine, case)
    for context in (None, step()):
        run = model.written_pass(stack, inputs(), context)
        assert passes
        with monkeypatch.context() as patch:
            patch.setattr("fedmoe.models.experts.may_pay", lambda active, experts: False)
            dense = model.written_pass(stack, inputs(), context)
        assert_as_dense(run, dense, stack, keep)


@pytest.mark.parametrize("name", ["softmax-1", "client"])
def test_a_sparse_gradient_may_be_added_to_the_parameters(name: str, passes: list[Any]) -> None:
    model, stack = setting(SPARSE[name], (5, 6), "outputs", "random")
    run = model.written_pass(stack, inputs())
    y_grad = torch.ones_like(run.y_COB)
    found = {key: torch.empty_like(value) for key, value in stack.items()}
    run.backward(y_grad, None, found, 0.0)
    expected = {key: value + found[key] for key, value in stack.items()}
    model.written_pass(stack, inputs()).backward(y_grad, None, stack, 1.0)
    for key, value in stack.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-9)


def test_idle_experts_are_left_out_where_most_are(passes: list[Any]) -> None:
    model, stack = setting(ClientRouter(num_experts=4), (5,), "outputs", "random")
    stack["router.assignment"] = torch.eye(4).double()[[2, 0, 2]]
    model.written_pass(stack, inputs())
    (run,) = passes
    assert run.layout.pair_P.tolist() == [2, 4, 10]
    assert run.layout.most == B
    model, stack = setting(SPARSE["softmax-2"], (5,), "outputs", "random")
    model.written_pass(stack, inputs())
    assert len(passes[1].layout.pair_P) == 3 * 6


def test_one_clients_samples_never_reach_another(passes: list[Any]) -> None:
    """Places that are left over are filled with something: a NaN there must stay at home."""
    model, stack = setting(SPARSE["softmax-1"], (5,), "outputs", "random")
    x_CBD = inputs()
    run = model.written_pass(stack, x_CBD)
    x_CBD[0] = torch.nan
    broken = model.written_pass(stack, x_CBD)
    torch.testing.assert_close(broken.y_COB[1:], run.y_COB[1:])
    into = {name: torch.zeros_like(value) for name, value in stack.items()}
    broken.backward(torch.ones_like(run.y_COB), None, into, 1.0)
    for name, value in into.items():
        if name.startswith("experts."):
            assert value[1:].isfinite().all()


def routed(batch: int, top_k: int, experts: int = 8) -> Tensor:
    """(1, E, B) even routing."""
    turns = (torch.arange(batch) - torch.arange(experts)[:, None]) % experts
    return (turns < top_k).float()[None]


def test_sparse_is_for_large_experts_few_of_which_answer() -> None:
    assert sparse.may_pay(active=2, num_experts=8)
    assert not sparse.may_pay(active=2, num_experts=4)
    assert sparse.layout_of(routed(80, 1), size=20_000) is not None
    assert sparse.layout_of(routed(80, 1), size=2_000) is None  # too small
    assert sparse.layout_of(routed(80, 4), size=20_000) is None  # too many answer
    skewed = routed(80, 1)
    skewed[0, :, :60] = 0.0
    skewed[0, 0, :60] = 1.0
    assert sparse.layout_of(skewed, size=20_000) is None  # and too many at one
    skewed[0] = 0.0
    skewed[0, 3] = 1.0
    layout = sparse.layout_of(skewed, size=20_000)
    assert layout is not None  # but not where the others are idle
    assert layout.pair_P.tolist() == [3]


def test_elsewhere_than_on_a_cpu_nobody_looks_at_the_counts() -> None:
    assert sparse.layout_of(torch.zeros(1, 8, 80, device="meta"), size=1e9) is None
