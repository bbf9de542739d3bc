# Posteriors and priors of mixtures against loops over single samples.

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmoe.training.posteriors import best_expert, fit_prior, posterior


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    raised = [math.exp(value - top) for value in values]
    return [one / sum(raised) for one in raised]


def posterior_of(
    likelihood_EB: Tensor, logits_EB: Tensor, prior_E: list[float], sample: int
) -> tuple[list[float], list[float]]:
    """Gate and posterior of one sample, by Bayes' rule as it is written."""
    experts = len(prior_E)
    gate = softmax([logits_EB[e, sample].item() + prior_E[e] for e in range(experts)])
    joint = [gate[e] * math.exp(likelihood_EB[e, sample].item()) for e in range(experts)]
    return gate, [one / sum(joint) for one in joint]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), experts=st.integers(1, 5), samples=st.integers(1, 6))
def test_posteriors_follow_bayes(seed: int, experts: int, samples: int) -> None:
    likelihood, logits = normal(seed, 3, experts, samples), normal(seed + 1, 3, experts, samples)
    prior = normal(seed + 2, 3, experts)
    q_CEB = posterior(likelihood, logits, prior)
    for client in range(3):
        for sample in range(samples):
            own = prior[client].tolist()
            _, expected = posterior_of(likelihood[client], logits[client], own, sample)
            torch.testing.assert_close(q_CEB[client, :, sample].tolist(), expected)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    experts=st.integers(1, 4),
    iterations=st.integers(0, 3),
    pseudo_count=st.sampled_from([1e-3, 1.0, 10.0]),
    centred=st.booleans(),
)
def test_the_fitted_prior_is_a_loop_over_samples(
    seed: int, experts: int, iterations: int, pseudo_count: float, centred: bool
) -> None:
    counts = [5, 2, 0]  # the last client has no samples
    likelihood, logits = 3 * normal(seed, 3, experts, 5), normal(seed + 1, 3, experts, 5)
    start = normal(seed + 2, 3, experts)
    real = torch.tensor([[float(b < count) for b in range(5)] for count in counts]).double()
    centre = normal(seed + 3, 3, experts).softmax(dim=1) if centred else None
    fitted = fit_prior(
        likelihood, logits, start, real,
        iterations=iterations, pseudo_count=pseudo_count, centre_CE=centre,
    )  # fmt: skip
    for client, count in enumerate(counts):
        prior = start[client].tolist()
        shares = [1 / experts] * experts if centre is None else centre[client].tolist()
        for _ in range(iterations):
            found = [pseudo_count * share for share in shares]
            held = [pseudo_count * share for share in softmax(prior)]
            for sample in range(count):
                gate, q = posterior_of(likelihood[client], logits[client], prior, sample)
                found = [total + one for total, one in zip(found, q, strict=True)]
                held = [total + one for total, one in zip(held, gate, strict=True)]
            prior = [b + math.log(f / h) for b, f, h in zip(prior, found, held, strict=True)]
        expected = [math.log(one) for one in softmax(prior)]
        torch.testing.assert_close(fitted[client].tolist(), expected, rtol=1e-6, atol=1e-6)


def test_without_a_gate_a_step_is_fedem_s_mean_posterior() -> None:
    likelihood, prior = 2 * normal(1, 2, 3, 8), normal(2, 2, 3).log_softmax(dim=1)
    gate, real = torch.zeros(2, 3, 8).double(), torch.ones(2, 8).double()
    fitted = fit_prior(likelihood, gate, prior, real, iterations=1, pseudo_count=1e-9)
    expected = posterior(likelihood, gate, prior).mean(dim=2)
    torch.testing.assert_close(fitted.exp(), expected)


@pytest.mark.parametrize("pseudo_count", [1e-9, 2.0, 50.0])
def test_steps_raise_the_posterior_until_they_rest_where_it_is_flat(pseudo_count: float) -> None:
    likelihood, logits = 2 * normal(3, 1, 4, 30), normal(4, 1, 4, 30)
    real, prior = torch.ones(1, 30).double(), torch.zeros(1, 4).double()

    def total(prior_CE: Tensor) -> Tensor:
        log_gate = (logits + prior_CE.unsqueeze(2)).log_softmax(dim=1)
        explained = (log_gate + likelihood).logsumexp(dim=1).sum()
        return explained + pseudo_count / 4 * prior_CE.log_softmax(dim=1).sum()

    values = [total(prior).item()]
    for _ in range(400):
        prior = fit_prior(likelihood, logits, prior, real, iterations=1, pseudo_count=pseudo_count)
        values.append(total(prior).item())
    assert all(after >= before - 1e-9 for before, after in pairwise(values))
    leaf = prior.clone().requires_grad_()
    (slope,) = torch.autograd.grad(total(leaf), leaf)
    alive = prior.exp() > 1e-6  # at the edge the slope may point outwards
    assert slope[alive].abs().max() < 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_the_best_expert_has_the_least_total_loss(seed: int) -> None:
    likelihood = normal(seed, 4, 3, 5)
    real = (normal(seed + 50, 4, 5) > 0).double()
    best = best_expert(likelihood, real)
    for client in range(4):
        totals = [
            sum(likelihood[client, e, b].item() for b in range(5) if real[client, b])
            for e in range(3)
        ]
        assert best[client] == totals.index(max(totals))


def test_of_equally_good_experts_the_first_is_chosen() -> None:
    assert best_expert(torch.zeros(2, 3, 4), torch.ones(2, 4)).tolist() == [0, 0]
