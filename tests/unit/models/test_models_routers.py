import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmoe.models.routers import balance_loss, softmax_top_k


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), experts=st.integers(1, 6), data=st.data())
def test_softmax_top_k_is_a_loop_over_samples(seed: int, experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(seed)
    logits_BE = 3 * torch.randn(5, experts, generator=generator, dtype=torch.float64)
    routing = softmax_top_k(logits_BE, top_k)
    for b, logits in enumerate(logits_BE.tolist()):
        scores = torch.tensor(logits, dtype=torch.float64).exp()
        best = set(sorted(range(experts), key=lambda e: -logits[e])[:top_k])
        kept = sum(float(scores[e]) for e in best)
        for e in range(experts):
            expected = float(scores[e]) / kept if e in best else 0.0
            assert routing.weight[b, e].item() == pytest.approx(expected, abs=1e-12)
            assert routing.chosen[b, e].item() == float(e in best)
            share = float(scores[e] / scores.sum())
            assert routing.probs[b, e].item() == pytest.approx(share, abs=1e-12)


def test_all_experts_is_plain_softmax_and_one_expert_is_certain() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, -1.0, 0.0]])
    everyone = softmax_top_k(logits, 3)
    assert torch.equal(everyone.weight, logits.softmax(dim=-1))
    assert torch.equal(everyone.chosen, torch.ones(2, 3))
    best = softmax_top_k(logits, 1)
    assert best.weight.tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    assert torch.equal(best.chosen, best.weight)
    assert torch.equal(best.probs, logits.softmax(dim=-1))


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_ties_still_choose_exactly_k(top_k: int) -> None:
    routing = softmax_top_k(torch.zeros(2, 6, 4), top_k)
    assert (routing.chosen.sum(dim=-1) == top_k).all()
    torch.testing.assert_close(routing.weight, routing.chosen / top_k)
    torch.testing.assert_close(routing.probs, torch.full((2, 6, 4), 0.25))


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])
    weight = softmax_top_k(logits, 2).weight
    assert weight.isfinite().all()
    torch.testing.assert_close(weight.sum(dim=-1), torch.ones(2))


def routed(clients: int, batch: int, experts: int, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, choices and weights; client c's last c samples are padding."""
    generator = torch.Generator().manual_seed(clients + 10 * batch + 100 * experts)
    logits = torch.randn(clients, batch, experts, generator=generator, dtype=torch.float64)
    routing = softmax_top_k(logits, top_k)
    real = (torch.arange(batch) < batch - torch.arange(clients)[:, None]).double()
    return routing.probs, routing.chosen, real / real.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balance_loss_is_a_loop_over_real_samples(top_k: int) -> None:
    clients, batch, experts = 3, 6, 4
    probs, chosen, weight = routed(clients, batch, experts, top_k)
    for client in range(clients):
        real = range(batch - client)
        expected = 0.0
        for e in range(experts):
            load = sum(float(chosen[client, b, e]) for b in real) / (len(real) * top_k)
            importance = sum(float(probs[client, b, e]) for b in real) / len(real)
            expected += experts * load * importance
        one = balance_loss(probs[client], chosen[client], weight[client])
        assert one.item() == pytest.approx(expected, abs=1e-12)
        stacked = balance_loss(probs, chosen, weight)
        assert stacked.shape == (clients,)
        assert stacked[client].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_balance_loss_is_1_at_even_load_and_e_over_k_when_collapsed(top_k: int) -> None:
    experts = 4
    weight = torch.full((experts,), 1 / experts)
    turns = torch.arange(experts)
    even = ((turns - turns[:, None]) % experts < top_k).float()  # sample b: b, .., b + K - 1
    torch.testing.assert_close(balance_loss(even / top_k, even, weight), torch.tensor(1.0))
    one_set = (turns < top_k).float().expand(experts, experts)
    collapsed = balance_loss(one_set / top_k, one_set, weight)
    torch.testing.assert_close(collapsed, torch.tensor(experts / top_k))


def test_balance_loss_learns_through_the_probabilities_only() -> None:
    probs, chosen, weight = routed(2, 5, 3, 2)
    probs.requires_grad_()
    chosen.requires_grad_()
    loss = balance_loss(probs, chosen, weight).sum()
    by_probs, by_chosen = torch.autograd.grad(loss, [probs, chosen], allow_unused=True)
    assert by_chosen is None
    load = torch.einsum("cb,cbe->ce", weight, chosen.detach()) / 2  # K = 2
    torch.testing.assert_close(by_probs, 3 * weight[..., None] * load[:, None])


def test_padding_has_no_influence_on_the_balance_loss() -> None:
    probs, chosen, weight = routed(3, 6, 4, 2)
    before = balance_loss(probs, chosen, weight)
    padding = weight == 0
    assert padding.any()
    probs[padding], chosen[padding] = 7.0, 1.0
    torch.testing.assert_close(balance_loss(probs, chosen, weight), before, rtol=0, atol=0)
