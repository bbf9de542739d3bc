"""The empirical-Bayes prior, against the likelihood written out with full covariance matrices."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_insight_record import GOOD

from fedmoe.insight import Guidance, Memory
from fedmoe.insight.policies.prior import Prior, Statistics, fit
from fedmoe.schema import PriorPolicyConfig

Clients = list[tuple[NDArray[np.float64], NDArray[np.float64]]]


def make_clients(
    seed: int, tau: float, sizes: list[int], features: int = 3, outputs: int = 1
) -> tuple[Clients, NDArray[np.float64]]:
    """Clients with a column of ones, theta_k ~ N(mu, tau^2 I), noise of deviation 0.7."""
    rng = np.random.default_rng(seed)
    mu = rng.normal(size=(features + 1, outputs))
    clients = []
    for size in sizes:
        x = np.column_stack([rng.normal(size=(size, features)), np.ones(size)])
        theta = mu + tau * rng.normal(size=mu.shape)
        clients.append((x, x @ theta + 0.7 * rng.normal(size=(size, outputs))))
    return clients, mu


def statistics_of(clients: Clients) -> Statistics:
    return Statistics.of(
        np.stack([x.T @ x for x, _ in clients]),
        np.stack([x.T @ y for x, y in clients]),
        np.stack([(y**2).sum(axis=0) for _, y in clients]),
        float(sum(len(x) for x, _ in clients)),
    )


def deviance_written_out(clients: Clients, rho: float) -> tuple[float, float, Any]:
    """-2 log likelihood up to a constant, sigma^2 and mu at their maximum, by dense algebra."""
    inverses = [np.linalg.inv(np.eye(len(x)) + rho * x @ x.T) for x, _ in clients]
    left = sum(x.T @ v @ x for (x, _), v in zip(clients, inverses, strict=True))
    right = sum(x.T @ v @ y for (x, y), v in zip(clients, inverses, strict=True))
    mu = np.linalg.solve(left, right)
    outputs = mu.shape[1]
    count = sum(len(x) for x, _ in clients) * outputs
    residual = sum(
        float(((y - x @ mu) * (v @ (y - x @ mu))).sum())
        for (x, y), v in zip(clients, inverses, strict=True)
    )
    determinant = -sum(outputs * np.linalg.slogdet(v)[1] for v in inverses)
    return count * np.log(residual / count) + float(determinant), residual / count, mu


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("rho", [1e-3, 0.1, 1.0, 50.0])
@pytest.mark.parametrize("sizes", [[8, 8, 8, 8], [2, 1, 30, 3, 9]])
def test_likelihood_from_statistics_is_the_likelihood(
    rho: float, sizes: list[int], outputs: int
) -> None:
    clients, _ = make_clients(0, 0.5, sizes, outputs=outputs)
    deviance, noise, mu = deviance_written_out(clients, rho)
    estimate = statistics_of(clients).estimate(rho)
    assert estimate.deviance == pytest.approx(deviance, rel=1e-6)
    assert estimate.noise == pytest.approx(noise, rel=1e-6)
    np.testing.assert_allclose(estimate.mean, mu, rtol=1e-5, atol=1e-7)


def test_fit_finds_the_maximum() -> None:
    clients, _ = make_clients(1, 0.5, [10] * 12)
    best = fit(statistics_of(clients))
    grid = np.exp(np.linspace(np.log(1e-5), np.log(1e5), 400))
    assert best.deviance <= min(deviance_written_out(clients, rho)[0] for rho in grid) + 1e-6


@pytest.mark.parametrize("seed", [0, 2])
def test_fewer_samples_than_coefficients_do_not_look_free_of_noise(seed: int) -> None:
    """What float32 loses of the sums must not pass for targets that are explained."""
    clients, _ = make_clients(seed, 0.5, [15] * 100, features=25)
    sums = statistics_of(clients)
    lossy = Statistics.of(
        np.stack([x.T @ x for x, _ in clients]).astype(np.float32).astype(float),
        np.stack([x.T @ y for x, y in clients]).astype(np.float32).astype(float),
        np.stack([(y**2).sum(axis=0) for _, y in clients]).astype(np.float32).astype(float),
        sums.samples,
    )
    best = fit(lossy)
    grid = np.exp(np.linspace(np.log(1e-3), np.log(1e3), 40))
    assert best.deviance <= min(deviance_written_out(clients, rho)[0] for rho in grid) + 0.1
    assert np.sqrt(best.noise) == pytest.approx(0.7, rel=0.3)


@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_fit_recovers_how_related_the_clients_are(tau: float) -> None:
    clients, mu = make_clients(2, tau, [20] * 200)
    estimate = fit(statistics_of(clients))
    assert np.sqrt(estimate.noise) == pytest.approx(0.7, rel=0.05)
    assert np.sqrt(estimate.rho * estimate.noise) == pytest.approx(tau, rel=0.15)
    np.testing.assert_allclose(estimate.mean, mu, atol=5 * tau / np.sqrt(200))


def memory_of(clients: Clients) -> Memory:
    memory = Memory(max_rounds=5)
    memory.add(
        replace(
            GOOD,
            client_id=k,
            num_examples=len(x),
            payload={
                "statistics_xx": (x.T @ x).astype(np.float32),
                "statistics_xy": (x.T @ y).astype(np.float32),
                "statistics_yy": (y**2).sum(axis=0).astype(np.float32),
            },
        )
        for k, (x, y) in enumerate(clients)
    )
    return memory


def advised(memory: Memory) -> Guidance:
    policy = Prior(PriorPolicyConfig())
    policy.learn(memory, 1)
    return policy.advise(0)


def test_reference_figures_of_the_linear_task() -> None:
    """Estimation error per client at tau = 0, .3, 1: about .03, .57, 2.3 in the reference."""
    expected = {0.0: 0.06, 0.3: 0.7, 1.0: 2.6}
    for tau, limit in expected.items():
        errors = []
        for seed in range(5):
            rng = np.random.default_rng(seed)
            mu = rng.normal(size=(10, 1))
            thetas = [mu + tau * rng.normal(size=mu.shape) for _ in range(30)]
            xs = [rng.normal(size=(12, 10)) for _ in thetas]
            clients = [
                (x, x @ theta + rng.normal(size=(12, 1)))
                for x, theta in zip(xs, thetas, strict=True)
            ]
            parts = advised(memory_of(clients)).parts
            ratio, mean = float(parts["prior_ratio"]), parts["prior_mean"]
            for (x, y), theta in zip(clients, thetas, strict=True):
                ridge = x.T @ x + ratio * np.eye(10)
                solved = np.linalg.solve(ridge, x.T @ y + ratio * mean)
                errors.append(float(((solved - theta) ** 2).sum()))
        assert np.mean(errors) < limit


def test_one_client_alone_gets_no_prior() -> None:
    clients, _ = make_clients(0, 0.5, [10])
    assert advised(memory_of(clients)) == Guidance()


def test_no_statistics_no_prior() -> None:
    memory = Memory(max_rounds=5)
    memory.add([GOOD, replace(GOOD, client_id=1)])
    assert advised(memory) == Guidance()
