"""What FedMoE is made of: gates, seeding, checkpoints, messages."""

import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from mixture_oracle import PlainClients
from mixture_runs import SIZES, Run, experiment_of, run
from test_expert_replies import LIMITS, Held, columns, over_network
from test_mixture_messages import Recording
from torch import Tensor

from fedmoe.clients import Experiment
from fedmoe.guard import ReplyGuard
from fedmoe.messages.arrays import tensors_of, to_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.models import Parameters
from fedmoe.simulations import InProcessGrid
from fedmoe.strategies import FedMoE, build_strategy
from fedmoe.strategies.seeding import cluster_directions, seed_experts
from fedmoe.strategies.state import restore_strategy, strategy_state

MOE = ["model=moe", "model.num_experts=3", "model.hidden=[4]"]
SMALL = [
    "strategy=fedmoe", "strategy.num_experts=3", "strategy.warm_up_rounds=2",
    "strategy.gate_from=4", "strategy.strengths=[40.0,2.0]", "rounds=5",
]  # fmt: skip
PRIOR_GATE = {"router.weight", "router.bias"}
EXPERTS = {"experts.weight", "experts.bias"}

# ---------------------------------------------------------------------------------- the gates

ROUTERS = {
    "softmax": ["model/router=softmax", "model.router.top_k=2"],
    "loss_free": ["model/router=loss_free"],
    "switch": ["model/router=switch"],
}


def recorded(words: Sequence[str]) -> tuple[Recording, Run]:
    grid = Recording(experiment_of(words))
    return grid, run(words, grid=grid)


@pytest.mark.parametrize("gate", ["shared", "local"])
@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_a_gate_without_prior_counts_what_it_routes(gate: str, router: list[str]) -> None:
    words = [*SMALL, *MOE, *router, f"strategy.gate={gate}", "rounds=3"]
    grid, found = recorded(words)
    assert not any(reason for round in found.reasons for reason in round)
    model = grid.experiment.model
    gates = {name for name in grid.experiment.initial if name.startswith("router.")}
    private = grid.experiment.algorithm.private_names(model)
    assert private == (gates if gate == "local" else set())
    shared = set(grid.experiment.initial) - private
    told = [c for kind, way, _, c in grid.seen if (kind, way) == ("train", "up")]
    for content in told:
        assert set(content.array_records["arrays"]) == shared
        assert "strengths" not in content.array_records
    scores = found.scores()
    assert ("test-global-loss" in scores) == (gate == "shared")
    assert "test-personalised-loss" in scores


@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_routed_samples_are_counted_one_by_one(router: list[str]) -> None:
    """By the gate as it was received, which is the one that all were sent."""
    words = [
        *SMALL, *MOE, *router, "strategy.gate=shared", "strategy.warm_up_rounds=0", "rounds=1",
    ]  # fmt: skip
    grid, _ = recorded(words)
    experiment, clients = grid.experiment, PlainClients(grid.experiment)
    gate = experiment.shared
    for kind, way, client, content in grid.seen:
        if (kind, way) != ("train", "up"):
            continue
        expected = [0.0, 0.0, 0.0]
        for x, _ in clients.samples(client):
            scores = gate["router.weight"].double() @ x + gate["router.bias"].double()
            top = 1 if "switch" in router[0] else experiment.config.model.router.top_k  # type: ignore[union-attr]
            for e in scores.argsort(descending=True)[:top].tolist():
                expected[e] += 1
        assert content.array_records["experts"]["examples"].numpy().tolist() == expected


def test_what_is_private_never_travels() -> None:
    grid, _ = recorded(SMALL)
    for kind, way, _, content in grid.seen:
        names = {key: set(record) for key, record in content.array_records.items()}
        if way == "down":
            assert names["arrays"] == EXPERTS | PRIOR_GATE
            keys = set(content.config_records["config"])
            assert keys == {"server-round", "prior-strength"}
        elif kind == "train":
            assert names.pop("arrays") == EXPERTS | PRIOR_GATE
            assert names.pop("experts") == {"index", "examples"}
            assert names in ({}, {"strengths": {"loss", "examples"}})


def test_a_shared_gate_without_bias_has_no_model_for_each() -> None:
    words = [*SMALL, *MOE, "strategy.gate=shared", "strategy.class_strength=null", "rounds=1"]
    scores = run(words).scores()
    assert "test-global-loss" in scores and "test-personalised-loss" not in scores


# ---------------------------------------------------------------------------------- seeding


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(seed: int, of: Sequence[int]) -> tuple[Parameters, Parameters]:
    """Clients of unlike lengths of update along the directions `of`."""
    average = {"a": normal(seed, 3, 2), "b": normal(seed + 1, 4)}
    far = {name: 3 * normal(seed + 2, 3, *value.shape) for name, value in average.items()}
    length = 0.1 + 5 * normal(seed + 3, len(of)).abs()
    trained = {
        name: torch.stack([
            value + length[c] * (far[name][k] + 0.1 * normal(seed + 4 + c, *value.shape))
            for c, k in enumerate(of)
        ])
        for name, value in average.items()
    }  # fmt: skip
    return average, trained


@pytest.mark.parametrize("seed", range(4))
def test_seeding_finds_planted_groups(seed: int) -> None:
    of = [0, 1, 2, 0, 0, 1, 2, 2, 1, 0]
    average, trained = planted(seed, of)
    weight = np.arange(1.0, 11.0)
    found = seed_experts(average, trained, weight, 3, seed).experts
    for name in average:
        expected = []
        for k in range(3):
            members = [c for c, own in enumerate(of) if own == k]
            whole = sum(weight[c] for c in members)
            expected.append(sum(weight[c] * trained[name][c] for c in members) / whole)
        distance = torch.stack([
            torch.stack([(mine - own).abs().max() for own in expected]) for mine in found[name]
        ])  # fmt: skip
        assert sorted(distance.argmin(dim=1).tolist()) == [0, 1, 2]
        assert distance.min(dim=1).values.max() < 1e-5


def test_the_length_of_an_update_says_nothing() -> None:
    direction = normal(0, 4, 6)
    update = torch.cat([direction * scale for scale in (0.01, 1.0, 100.0)])
    found = cluster_directions(update, 4, 0).reshape(3, 4)
    assert (found == found[0]).all() and len(set(found[0].tolist())) == 4


def test_with_fewer_clients_than_experts_the_others_begin_at_the_mean() -> None:
    average, trained = planted(0, [0, 1])
    weight = np.array([1.0, 3.0])
    found = seed_experts(average, trained, weight, 4, 0).experts
    for name in average:
        own = [found[name][e] for e in range(4)]
        mean = (trained[name][0] + 3 * trained[name][1]) / 4
        for client in range(2):
            assert min((one - trained[name][client]).abs().max() for one in own) < 1e-6
        assert sum(bool(torch.allclose(one, mean)) for one in own) == 2


def test_clients_that_are_all_alike_make_experts_that_are() -> None:
    average = {"a": normal(0, 3)}
    trained = {"a": (average["a"] + 1).expand(5, 3)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = seed_experts(average, trained, np.ones(5), 3, 0).experts
        still = seed_experts(average, {"a": average["a"].expand(5, 3)}, np.ones(5), 3, 0).experts
    torch.testing.assert_close(found["a"], (average["a"] + 1).expand(3, 3))
    torch.testing.assert_close(still["a"], average["a"].expand(3, 3))


# -------------------------------------------------------------------------------- checkpoints


def strategy_of(experiment: Experiment) -> FedMoE:
    strategy = build_strategy(experiment.config, experiment.data.task)
    assert isinstance(strategy, FedMoE)
    return strategy


def play(experiment: Experiment, resumed: Sequence[int], rounds: int = 5) -> list[Parameters]:
    """The global model after each round; strategy and clients are made again after some."""
    strategy, grid, after = strategy_of(experiment), InProcessGrid(experiment), list[Parameters]()
    arrays = to_record(experiment.shared)
    for round in range(1, rounds + 1):
        sent = strategy.configure_train(round, arrays, ConfigRecord(), grid)
        merged, _ = strategy.aggregate_train(round, grid.send_and_receive(sent))
        assert merged is not None
        after.append({name: value.clone() for name, value in tensors_of(merged).items()})
        after[-1]["strength"] = torch.tensor(strategy.strength)
        if strategy.assignment is not None:
            tables, _ = strategy.assignment.state()
            after[-1] |= {name: torch.from_numpy(a.astype(float)) for name, a in tables.items()}
        if strategy.loss_S is not None:
            after[-1]["loss"] = torch.from_numpy(strategy.loss_S.copy())
        arrays = to_record(tensors_of(merged))
        if round in resumed:
            state, values = strategy_state(strategy)
            assert not any("experts." in path for path in state)  # the standing has the model
            kept = {path: array.copy() for path, array in grid.state().items()}
            strategy, grid = strategy_of(experiment), InProcessGrid(experiment)
            restore_strategy(strategy, state, json.loads(json.dumps(values)))
            grid.restore(kept)
    return after


@pytest.mark.parametrize("resumed", [[1], [2], [3], [4], [1, 2, 3, 4]], ids=str)
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["training.reset_optimizer=false"],
        ["strategy.experts_per_client=1", "strategy.fraction_train=0.7"],
        ["strategy.experts_per_client=2", "training.reset_optimizer=false"],
    ],
    ids=["", "kept", "one", "two"],
)
def test_a_checkpoint_may_be_taken_between_any_two_rounds(
    resumed: list[int], more: list[str]
) -> None:
    experiment = experiment_of([*SMALL, *more])
    for mine, theirs in zip(play(experiment, resumed), play(experiment, []), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())


# -------------------------------------------------------------------- what clients may say

Spoil = Callable[[Held], object]
F32 = np.float32


def says(key: str, name: str, value: Any) -> Spoil:
    return lambda held: held[key].update({name: np.asarray(value)})


RANGE = "losses by strength are out of range or of wrong shape"
BAD: list[tuple[str, Spoil, str | None]] = [
    ("fine", says("strengths", "loss", np.array([1, 2], F32)), None),
    ("nothing-held-out", says("strengths", "examples", np.zeros(1, F32)), None),
    ("negative", says("strengths", "loss", np.array([-1, 2], F32)), RANGE),
    ("nan", says("strengths", "loss", np.array([np.nan, 2], F32)), "not finite"),
    ("infinite", says("strengths", "loss", np.array([np.inf, 2], F32)), "not finite"),
    ("huge", says("strengths", "loss", np.array([2e9, 2], F32)), RANGE),
    ("one", says("strengths", "loss", np.ones(1, F32)), RANGE),
    ("scalar", says("strengths", "loss", F32(1)), RANGE),
    ("table", says("strengths", "loss", np.ones((2, 1), F32)), RANGE),
    ("whole", says("strengths", "loss", np.ones(2, np.int64)), RANGE),
    ("negative-examples", says("strengths", "examples", np.array([-1], F32)), RANGE),
    ("huge-examples", says("strengths", "examples", np.array([1e10], F32)), RANGE),
    ("scalar-examples", says("strengths", "examples", F32(1)), RANGE),
    ("more", says("strengths", "x", np.ones(1, F32)), "must hold loss and examples"),
    ("no-loss", lambda held: held["strengths"].pop("loss"), "must hold loss and examples"),
    ("silent", lambda held: held.pop("strengths"), "must hold loss and examples"),
    ("bad-experts", says("experts", "examples", np.full(3, 99, F32)), "experts int64[0, 1, 2]"),
    ("long-load", says("expert-load", "load", np.ones(4, F32)), "differs from the other replies"),
    ("nan-load", says("expert-load", "load", np.full(3, np.nan, F32)), "not finite"),
    ("no-load", lambda held: held.pop("expert-load"), "differs from the other replies"),
    ("odd-load", says("expert-load", "x", np.ones(3, F32)), "differs from the other replies"),
]  # fmt: skip


def healthy(sent: Broadcast, client: int) -> Held:
    arrays = tensors_of(sent.records["arrays"])  # type: ignore[arg-type]
    third = np.full(3, 1 / 3, F32)
    return {
        "arrays": {name: np.full_like(a.numpy(), client) for name, a in arrays.items()},
        "experts": {"index": np.arange(3), "examples": np.full(3, 4, F32)},
        "strengths": {"loss": np.array([3, 2], F32), "examples": np.ones(1, F32)},
        "expert-load": {"load": third, "importance": third},
        "metrics": {"num-examples": np.array(12), "loss": np.array(0.5)},
    }


@pytest.mark.parametrize(("name", "spoil", "why"), BAD, ids=[one[0] for one in BAD])
def test_what_a_client_says_wrongly_is_its_failure(
    name: str, spoil: Spoil, why: str | None
) -> None:
    experiment = experiment_of([*SMALL, "strategy.warm_up_rounds=0"])
    verdicts, states = list[dict[int, str]](), list[tuple[Any, float]]()
    for network in (False, True):
        strategy = strategy_of(experiment)
        sent = strategy.configure_train(
            1, to_record(experiment.shared), ConfigRecord(), InProcessGrid(experiment)
        )
        assert isinstance(sent, Broadcast)
        held = [healthy(sent, client) for client in range(len(SIZES))]
        spoil(held[2])
        bad = sent.nodes[2]
        replies: Any = columns(sent, held)
        if network:
            replies = [over_network(reply) for reply in replies]
        result = ReplyGuard(LIMITS, strategy).inspect(sent, replies)
        merged, _ = strategy.aggregate_train(1, result.good)
        assert merged is not None
        assert strategy.load.keys() == {"load", "importance"}
        verdicts.append(result.failures)
        states.append((strategy.loss_S, strategy.strength))
    mine, theirs = verdicts
    assert mine.keys() == theirs.keys() == ({bad} if why else set())
    for failures in verdicts:
        assert all(why is not None and why in reason for reason in failures.values())
    np.testing.assert_allclose(states[0][0], states[1][0])
    assert states[0][1] == states[1][1] == 2.0


def test_without_validation_data_the_strength_stays() -> None:
    experiment = experiment_of([*SMALL, "strategy.warm_up_rounds=0"])
    strategy = strategy_of(experiment)
    strategy.strength = 2.0
    arrays, grid = to_record(experiment.shared), InProcessGrid(experiment)
    sent = strategy.configure_train(1, arrays, ConfigRecord(), grid)
    assert isinstance(sent, Broadcast)
    held = [healthy(sent, client) for client in range(len(SIZES))]
    for own in held:
        own["strengths"] = {"loss": np.zeros(2, F32), "examples": np.zeros(1, F32)}
    strategy.aggregate_train(1, columns(sent, held))
    assert (strategy.strength, strategy.loss_S) == (2.0, None)
