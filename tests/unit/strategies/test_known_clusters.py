"""Experts made of clusters that insights have found, and priors that are held at them."""

from typing import Any

import numpy as np
import pytest
import torch
from mixture_runs import Run, run
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from fedmoe import data
from fedmoe.clients import load_experiment
from fedmoe.clients.algorithms import fedmoe as fedmoe_client
from fedmoe.clients.guidance import NOT_GUIDED
from fedmoe.clients.guided import guided_rates
from fedmoe.config import load_config, to_json
from fedmoe.strategies import FedMoE, Insights
from fedmoe.strategies.seeding import seed_experts
from fedmoe.training.posteriors import fit_prior
from fedmoe.training.terms import Rehearsal, Term

GROUPS = [0, 1, 1, 0, 0, 1, 0, 1]
WORDS = [
    "data=custom", "data.factory=two-names-test-data", "strategy=fedmoe", "strategy.num_experts=3",
    "training.batch_size=100", "meta_learner=expert_assignment", "rounds=3",
]  # fmt: skip


@data.register("two-names-test-data")
def two_names(*, seed: int) -> data.Dataset:
    """Eight clients, half of which call the classes by other names."""
    rng = np.random.default_rng(seed)
    client_N = np.repeat(np.arange(len(GROUPS)), 24)
    class_N = rng.integers(3, size=len(client_N))
    means = 4 * rng.standard_normal((3, 4))
    x_ND = (means[class_N] + rng.standard_normal((len(client_N), 4))).astype(np.float32)
    y_N = (class_N + np.array(GROUPS)[client_N]) % 3
    return data.Dataset(
        name="mine", origin="synthetic",
        task=data.Task(kind="classification", num_features=4, num_outputs=3),
        x_ND=x_ND, y_N=y_N, client_N=client_N,
    )  # fmt: skip


def priors(done: Run) -> Tensor:
    """Each client's shares of the experts, (C, E)."""
    kept = [done.private(client) for client in range(len(GROUPS))]
    return torch.stack([one["router.prior"].softmax(dim=0) for one in kept if one is not None])


def test_experts_are_made_after_the_first_round_and_clients_begin_with_their_own() -> None:
    done = run(WORDS)
    strategy = done.strategy
    assert isinstance(strategy, FedMoE) and isinstance(strategy, Insights)
    assert strategy.split and strategy.warm_up_rounds == 1
    best = priors(done).argmax(dim=1).numpy()
    assert adjusted_rand_score(GROUPS, best) == 1.0
    alone = run(WORDS, alone=True)
    torch.testing.assert_close(priors(alone), priors(done), rtol=0, atol=1e-5)
    for name, value in done.arrays[-1].items():
        torch.testing.assert_close(alone.arrays[-1][name], value, rtol=0, atol=1e-5)


def test_priors_are_held_at_the_expert_that_clients_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In training, in the choice of a strength, and in evaluation; at even shares before."""
    seen: list[Tensor | None] = []

    def recorded(*args: Any, centre_CE: Tensor | None = None, **options: Any) -> Tensor:
        seen.append(centre_CE)
        return fit_prior(*args, centre_CE=centre_CE, **options)

    monkeypatch.setattr(fedmoe_client, "fit_prior", recorded)
    run([*WORDS, "strategy.strengths=[1,100]", "rounds=2"])
    told_CE = torch.full((len(GROUPS), 3), 0.1 / 3)
    told_CE[torch.arange(len(GROUPS)), torch.tensor(GROUPS)] += 0.9
    # Training and evaluation in round 1; then training, the strengths, and evaluation.
    assert [one is None for one in seen] == [True, True, False, False, False]
    expected = [told_CE, told_CE.repeat(2, 1), told_CE]
    for centre_CE, wanted in zip(seen[2:], expected, strict=True):
        assert centre_CE is not None  # clients train in an order of their own
        torch.testing.assert_close(centre_CE.sort(dim=0).values, wanted.sort(dim=0).values)
    torch.testing.assert_close(seen[-1], told_CE)


def test_without_the_policy_it_takes_the_whole_warm_up() -> None:
    done = run([*WORDS, "meta_learner=none"])
    assert not done.strategy.split


def test_seeds_are_the_weighted_means_of_known_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    average = {"w": torch.randn(2, generator=generator)}
    trained = {"w": torch.randn(5, 2, generator=generator)}
    weight_C = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    seeds = seed_experts(average, trained, weight_C, 4, 0, np.array([1, 0, -1, 1, 3]))
    np.testing.assert_array_equal(seeds.cluster_C, [1, 0, -1, 1, 3])
    w = trained["w"]
    everybody = sum((weight_C[k] * w[k] for k in range(5)), torch.zeros(2)) / 15
    expected = [w[1], (w[0] + 4 * w[3]) / 5, everybody, w[4]]
    torch.testing.assert_close(seeds.experts["w"], torch.stack(expected))


def test_rehearsal_makes_a_loss_a_mean() -> None:
    """A step of (own + w rehearsed) / (1 + w); Adam's do not depend on the scale."""
    weight_CO = torch.tensor([[0.5, 1.5], [0.0, 0.0]])
    terms: list[Term] = [Rehearsal(torch.zeros(2, 2, 3), torch.zeros(2, 2, 2), weight_CO)]
    for optimizer, expected in (("sgd", [0.1 * 2 / 3, 0.1 * 2]), ("adam", [0.1, 0.2])):
        config = load_config([f"training={optimizer}", "training.learning_rate=0.1"])
        experiment = load_experiment(to_json(config))
        factor_C = torch.tensor([2.0, 2.0]) if optimizer == "sgd" else torch.tensor([1.0, 2.0])
        held = NOT_GUIDED._replace(numbers={"learning_rate": factor_C})
        rate_C = guided_rates(experiment, held, terms, 2)
        torch.testing.assert_close(rate_C, torch.tensor(expected))
