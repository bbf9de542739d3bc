"""IFCA's trials of several starts against a plain loop, void rounds and checkpoints included."""

import json
import logging
from collections.abc import Collection
from itertools import combinations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from mixture_oracle import PlainClients, PlainIfca
from mixture_runs import assert_close, experiment_of

from fedmoe.clients import Experiment
from fedmoe.messages.arrays import tensors_of, to_record
from fedmoe.models import Parameters
from fedmoe.simulations import InProcessGrid
from fedmoe.strategies import Ifca, build_strategy
from fedmoe.strategies.state import restore_strategy, strategy_state

EVERY, TRIALS, ROUNDS = 2, 3, 9
WORDS = [
    "strategy=ifca", "strategy.num_clusters=2", f"strategy.restarts={TRIALS}",
    f"strategy.restart_rounds={EVERY}", f"rounds={ROUNDS}",
]  # fmt: skip


def strategy_of(experiment: Experiment) -> Ifca:
    strategy = build_strategy(experiment.config, experiment.data.task)
    assert isinstance(strategy, Ifca)
    return strategy


def restored(strategy: Ifca, experiment: Experiment) -> Ifca:
    """As from a checkpoint."""
    arrays, values = strategy_state(strategy)
    again = strategy_of(experiment)
    restore_strategy(again, arrays, json.loads(json.dumps(values)))
    return again


def play(
    experiment: Experiment, void: Collection[int], *, resume: bool = False
) -> list[Parameters]:
    """The global model after each round; what came in a void round is lost."""
    strategy, grid = strategy_of(experiment), InProcessGrid(experiment)
    arrays: ArrayRecord = to_record(experiment.shared)
    after = []
    for round in range(1, ROUNDS + 1):
        replies = grid.send_and_receive(
            strategy.configure_train(round, arrays, ConfigRecord(), grid)
        )
        if round not in void:
            merged, _ = strategy.aggregate_train(round, replies)
            assert merged is not None
            arrays = merged
        after.append({name: value.clone() for name, value in tensors_of(arrays).items()})
        if resume:
            strategy = restored(strategy, experiment)
            arrays = to_record(after[-1])
    return after


def play_plainly(experiment: Experiment, void: Collection[int]) -> list[Parameters]:
    clients = PlainClients(experiment)
    starts = [experiment.shared, *strategy_of(experiment).trials.starts]
    trials = [PlainIfca(clients, start) for start in starts]
    everyone, loss_of = range(clients.number), dict[int, float]()
    shared, after = trials[0].shared(), []
    for round in range(1, ROUNDS + 1):
        trial = (round - 1) // EVERY
        chosen = trial if trial < TRIALS else min(loss_of, key=lambda one: loss_of[one])
        if round not in void:
            trials[chosen].round(round, everyone)
            shared = trials[chosen].shared()
            if trial < TRIALS:
                total = sum(clients.count(c) * clients.losses[round, c] for c in everyone)
                loss_of[trial] = total / sum(map(clients.count, everyone))
            if round == TRIALS * EVERY:
                shared = trials[min(loss_of, key=lambda one: loss_of[one])].shared()
        after.append(shared)
    return after


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_of_the_starts_goes_on(seed: int) -> None:
    experiment = experiment_of([*WORDS, f"seed={seed}"])
    for mine, theirs in zip(play(experiment, ()), play_plainly(experiment, ()), strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("void", [{1}, {2}, {3}, {3, 4}, {5}, {6}, {6, 7}, {5, 6, 8}, {1, 2, 6, 7}])
def test_void_rounds_lose_no_start(void: set[int]) -> None:
    experiment = experiment_of(WORDS)
    for mine, theirs in zip(play(experiment, void), play_plainly(experiment, void), strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("void", [set(), {3}, {6, 7}], ids=str)
def test_a_checkpoint_may_be_taken_between_any_two_rounds(void: set[int]) -> None:
    experiment = experiment_of(WORDS)
    straight, resumed = play(experiment, void), play(experiment, void, resume=True)
    for mine, theirs in zip(resumed, straight, strict=True):
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())


def test_a_checkpoint_holds_only_what_came_of_the_trials() -> None:
    """The starts are made again from the configuration."""
    experiment = experiment_of(WORDS)
    strategy, grid = strategy_of(experiment), InProcessGrid(experiment)
    arrays: ArrayRecord = to_record(experiment.shared)
    sizes = []
    for round in range(1, ROUNDS + 1):
        sent = strategy.configure_train(round, arrays, ConfigRecord(), grid)
        merged, _ = strategy.aggregate_train(round, grid.send_and_receive(sent))
        assert merged is not None
        arrays = merged
        kept, _ = strategy_state(strategy)
        assert all(path.startswith("trials/") for path in kept)
        sizes.append(len({path.split("/")[1] for path in kept}))
    assert sizes == [1, 1, 2, 2, 3, 0, 0, 0, 0]


def test_the_starts_are_drawn_anew_for_each_trial_and_seed() -> None:
    starts = [
        start["experts.weight"]
        for seed in range(4)
        for experiment in [experiment_of([*WORDS, f"seed={seed}"])]
        for start in [experiment.shared, *strategy_of(experiment).trials.starts]
    ]
    assert len(starts) == 4 * TRIALS
    assert not any(torch.equal(one, other) for one, other in combinations(starts, 2))
    again = strategy_of(experiment_of(WORDS)).trials.starts
    for mine, theirs in zip(again, strategy_of(experiment_of(WORDS)).trials.starts, strict=True):
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())


def test_a_reply_without_a_loss_wins_no_trial() -> None:
    """Clients need not report one; such a trial then counts as the worst."""
    experiment = experiment_of([*WORDS, "strategy.restarts=2", "strategy.restart_rounds=1"])
    strategy, grid = strategy_of(experiment), InProcessGrid(experiment)
    arrays, first = to_record(experiment.shared), None
    for round in (1, 2):
        replies = grid.send_and_receive(
            strategy.configure_train(round, arrays, ConfigRecord(), grid)
        )
        if round == 2:
            for part in replies.parts:  # type: ignore[attr-defined]
                del part.records["metrics"]["loss"]
        merged, _ = strategy.aggregate_train(round, replies)
        first = merged if first is None else first
    assert merged is not None and first is not None
    for name, value in tensors_of(first).items():
        np.testing.assert_array_equal(tensors_of(merged)[name].numpy(), value.numpy())


@pytest.mark.parametrize(("rounds", "warned"), [(5, True), (6, False)])
def test_a_run_that_is_too_short_for_its_trials_is_warned_of(
    rounds: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="fedmoe.strategies"):
        strategy_of(experiment_of([*WORDS, f"rounds={rounds}"]))
    told = [r.message for r in caplog.records if "best start will not be chosen" in r.message]
    assert bool(told) == warned
    if warned:
        assert "strategy.restarts=3 of 2 rounds each take 6 rounds, but rounds=5" in told[0]
