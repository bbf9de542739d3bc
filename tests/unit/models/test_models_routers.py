# The softmax over the chosen experts and the load-balancing loss, against loops over samples.
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.models.router_losses import FederationLoad, RouterLosses, balance_loss
from fedmoe.models.routing import Routing, softmax_top_k


@given(seed=st.integers(0, 10_000), experts=st.integers(1, 6), data=st.data())
def test_softmax_top_k_is_a_loop_over_samples(seed: int, experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(seed)
    logits_EB = torch.randn(experts, 5, generator=generator, dtype=torch.float64)
    routing = softmax_top_k(logits_EB, top_k)
    assert torch.equal(routing.logits, logits_EB)
    for sample in range(5):
        logits = logits_EB[:, sample].tolist()
        best = set(sorted(range(experts), key=lambda e: -logits[e])[:top_k])
        total = sum(torch.tensor(z).exp().item() for z in logits)
        kept = sum(torch.tensor(logits[e]).exp().item() for e in best)
        for e, z in enumerate(logits):
            score, where = torch.tensor(z).exp().item(), (e, sample)
            assert routing.probs[where].item() == pytest.approx(score / total, rel=1e-6)
            assert routing.chosen[where].item() == float(e in best)
            expected = score / kept if e in best else 0.0
            assert routing.weight[where].item() == pytest.approx(expected, rel=1e-6)


def test_everyone_chosen_is_the_plain_softmax_and_one_chosen_is_argmax() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]]).mT
    everyone = softmax_top_k(logits, 3)
    assert torch.equal(everyone.weight, everyone.probs)
    assert everyone.chosen.sum() == 3
    best = softmax_top_k(logits, 1)
    assert best.weight.flatten().tolist() == [0.0, 1.0, 0.0]
    assert best.chosen.flatten().tolist() == [0.0, 1.0, 0.0]
    torch.testing.assert_close(best.probs, everyone.probs)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_ties_still_choose_exactly_k(top_k: int) -> None:
    routing = softmax_top_k(torch.zeros(2, 4, 6), top_k)
    assert (routing.chosen.sum(dim=1) == top_k).all()
    torch.testing.assert_close(routing.weight, routing.chosen / top_k)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4], [-1e4], [0.0]], requires_grad=True)
    weight = softmax_top_k(logits, 2).weight
    (grad,) = torch.autograd.grad(weight[0, 0], logits)
    assert grad.isfinite().all()
    assert weight.flatten().tolist() == [1.0, 0.0, 0.0]


def routed(top_k: int) -> tuple[Routing, torch.Tensor]:
    """Routing of 3 clients, the last of which has no samples, and the samples' weights."""
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    counts = torch.tensor([6, 4, 0])[:, None]
    weight = (torch.arange(6) < counts).double() / counts.clamp_min(1)
    return softmax_top_k(logits, top_k), weight


def told() -> FederationLoad:
    generator = torch.Generator().manual_seed(9)
    load, importance = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    return FederationLoad(
        load / load.sum(dim=1, keepdim=True), importance / importance.sum(dim=1, keepdim=True)
    )


@pytest.mark.parametrize("scope", ["local", "federation"])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balance_loss_is_a_loop_over_real_samples(top_k: int, scope: str) -> None:
    routing, weight = routed(top_k)
    losses = RouterLosses(balance=0.3, scope=scope)  # type: ignore[arg-type]
    found = losses.value(routing, weight, told())
    unknown = losses.value(routing, weight, None)
    for client in range(3):
        real = [b for b in range(6) if weight[client, b] > 0]
        local, federation = 0.0, 0.0
        for e in range(4):
            if real:
                slots = sum(float(routing.chosen[client, e, b]) for b in real)
                mean = sum(float(routing.probs[client, e, b]) for b in real) / len(real)
                local += 4 * slots / (len(real) * top_k) * mean
                federation += 4 * float(told().load_CE[client, e]) * mean
        expected = federation if scope == "federation" else local
        assert found[client].item() == pytest.approx(0.3 * expected, rel=1e-9)
        assert unknown[client].item() == pytest.approx(0.3 * local, rel=1e-9)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_balance_loss_is_1_at_even_load_and_e_over_k_when_collapsed(top_k: int) -> None:
    experts = 4
    weight = torch.full((1, experts), 1 / experts)
    load = torch.full((1, experts), 1 / experts)
    even = balance_loss(torch.full((1, experts, experts), 1 / experts), load, weight)
    torch.testing.assert_close(even, torch.ones(1))
    one_set = (torch.arange(experts) < top_k).float()[None] / top_k
    collapsed = balance_loss(one_set[:, :, None].expand(1, experts, experts), one_set, weight)
    torch.testing.assert_close(collapsed, torch.tensor([experts / top_k]))


@pytest.mark.parametrize("scope", ["local", "federation"])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_gradient_of_router_losses_is_that_of_autograd(top_k: int, scope: str) -> None:
    routing, weight = routed(top_k)
    losses = RouterLosses(balance=0.3, scope=scope)  # type: ignore[arg-type]
    logits = routing.logits.clone().requires_grad_()
    total = losses.value(softmax_top_k(logits, top_k), weight, told()).sum()
    (expected,) = torch.autograd.grad(total, logits)
    found = losses.logits_gradient(routing, weight, told())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
