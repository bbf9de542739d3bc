"""FedMoE, whole runs: against plain loops over clients and samples, and one by one."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fedmoe_oracle import PlainFedMoE
from mixture_oracle import PlainClients
from mixture_runs import MODELS, Run, assert_close, run
from test_mixture_strategies import assert_scores

from fedmoe.clients.algorithms import fedmoe, mixture

KEPT = "training.reset_optimizer=false"
SMALL = [
    "strategy=fedmoe", "strategy.num_experts=3", "strategy.warm_up_rounds=1",
    "strategy.gate_from=3", "strategy.gate_decay=0.5", "strategy.strengths=[40.0,2.0]",
    "strategy.class_strength=5.0", "rounds=4",
]  # fmt: skip
SOME = ["strategy.strengths=[20.0,2.0]", "rounds=9"]
CASES: list[Sequence[str]] = [
    [],
    MODELS["mlp"],
    MODELS["own"],
    [*MODELS["mlp"], "strategy.body_half_life=0.7"],
    [*MODELS["mlp"], "strategy.body_half_life=null"],
    [*MODELS["mlp"], "strategy.warm_up_rounds=0"],  # experts at random have nothing in common
    ["+data.options.kind=regression"],
    ["strategy.class_strength=null"],
    ["strategy.warm_up_rounds=0"],
    ["strategy.warm_up_rounds=2", "strategy.gate_from=1"],  # the gate is trained from the start
    ["strategy.fraction_train=0.5"],
    ["strategy.strengths=[10.0]"],
    ["strategy.num_experts=1"],
    ["strategy.num_experts=8"],  # more than clients
    ["+data.options.sizes='20'", "strategy.num_experts=2"],  # one client
    [*SOME, "strategy.experts_per_client=1"],
    [*SOME, "strategy.experts_per_client=2"],
    [*SOME, "strategy.experts_per_client=2", "strategy.fraction_train=0.5"],
    [*SOME, "strategy.experts_per_client=2", "strategy.warm_up_rounds=0", MODELS["mlp"][0]],
    [*SOME, "strategy.experts_per_client=3", "strategy.fraction_train=0.7"],  # that is all
]


def follow(found: Run) -> PlainFedMoE:
    """The same rounds as a loop, compared after each."""
    clients = PlainClients(found.experiment)
    plain = PlainFedMoE(clients, found.experiment.shared)
    for round, (asked, arrays) in enumerate(zip(found.sampled, found.arrays, strict=True), 1):
        plain.round(round, asked)
        assert_close(arrays, plain.shared())
        told = found.records[round - 1].clients["loss"]
        assert told == pytest.approx([clients.losses[round, c] for c in asked], abs=1e-5)
    return plain


@functools.cache
def whole(words: Sequence[str]) -> Run:
    """A run that two tests look at, and do not change."""
    return run([*SMALL, *words])


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_a_run_is_its_loop(words: Sequence[str]) -> None:
    found = whole(tuple(words))
    assert not any(reason for round in found.reasons for reason in round)
    plain = follow(found)
    assert_scores(found, plain)
    assert found.strategy.strength == plain.strength
    if plain.table is not None:
        assignment = found.strategy.assignment
        assert [node - 2 for node in assignment.nodes] == plain.table.order
        for row, client in enumerate(plain.table.order):
            fit = [plain.table.fit.get((client, e), 0.0) for e in range(assignment.num_experts)]
            np.testing.assert_allclose(assignment.fit_KE[row], fit, rtol=0, atol=1e-5)
    if plain.mean_loss is not None:
        np.testing.assert_allclose(found.strategy.loss_S, plain.mean_loss, rtol=0, atol=1e-5)
    for client in range(found.experiment.data.num_clients):
        own = found.private(client)
        assert (own is None) == (client not in plain.priors)
        if own is not None:
            np.testing.assert_allclose(own["router.prior"], plain.priors[client], atol=1e-5)


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_one_by_one_is_the_same(words: Sequence[str]) -> None:
    assert_same(run([*SMALL, *words], alone=True), whole(tuple(words)))


@pytest.mark.parametrize("more", ["runtime.shard_size=2", "training.cohort_size=2"])
def test_shards_and_small_chunks_change_nothing(more: str) -> None:
    assert_same(run([*SMALL, more]), run(SMALL))


def assert_same(mine: Run, theirs: Run) -> None:
    for one, other in zip(mine.arrays, theirs.arrays, strict=True):
        assert_close(one, other)
    scores, expected = mine.scores(), theirs.scores()
    assert scores.keys() == expected.keys()
    for name, column in expected.items():
        np.testing.assert_allclose(scores[name], column, rtol=0, atol=1e-5, err_msg=name)
    for one_of, other_of in zip(mine.records, theirs.records, strict=True):
        assert one_of.metrics["bytes"] == other_of.metrics["bytes"]
    for client in range(theirs.experiment.data.num_clients):
        own, same = theirs.private(client), mine.private(client)
        assert (own is None) == (same is None)
        if own is not None and same is not None:
            assert_close(same, own)


def test_the_strength_with_the_lower_loss_is_chosen() -> None:
    """Another than that to begin with, or the loop would say nothing of what it changes."""
    found = run(SMALL)
    assert found.strategy.strengths == [40.0, 2.0]
    assert found.strategy.loss_S[0] < found.strategy.loss_S[1]
    assert found.strategy.strength == 40.0


@pytest.mark.parametrize("kept", ["fedavg", "adam"])
def test_the_optimisers_state_goes_on_when_the_gate_joins(kept: str) -> None:
    more = [KEPT] if kept == "fedavg" else ["training=adam", KEPT]
    together, alone = run([*SMALL, *more]), run([*SMALL, *more], alone=True)
    assert not any(reason for round in together.reasons for reason in round)
    assert_same(alone, together)


def test_perfect_experts_have_no_negative_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares that sum to a little more than 1 are rounding, and no client's fault."""
    gather = mixture.gather_evidence

    def perfect(*arguments: Any) -> Any:
        evidence = gather(*arguments)
        return evidence._replace(log_likelihood_CEn=evidence.log_likelihood_CEn * 0 + 1e-7)

    monkeypatch.setattr(fedmoe, "gather_evidence", perfect)
    found = run([*SMALL, "rounds=3"])
    assert not any(reason for round in found.reasons for reason in round)
    assert found.strategy.loss_S.tolist() == [0.0, 0.0]
