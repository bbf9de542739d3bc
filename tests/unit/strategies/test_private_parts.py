"""What is private to a client stays there, whatever happens; told by the messages themselves."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from numpy.typing import NDArray

from fedmoe.clients import Experiment, answer, load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.data import pooled
from fedmoe.messages.arrays import from_record, plain, to_record
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import ensure_task_identity, wire_bytes, with_content
from fedmoe.messages.sizes import content_bytes
from fedmoe.models.heads import head_names
from fedmoe.rounds import RoundLoop, RoundRecord
from fedmoe.simulations import ContextGrid, InProcessGrid
from fedmoe.standing import Standing
from fedmoe.strategies import StackedFedAvg, build_strategy

CLIENTS = 5
TRAINING = [
    "model.hidden=[9]", "training.learning_rate=0.01", "training.epochs=1",
    "training.reset_optimizer=false", "strategy.fraction_train=0.8",
]  # fmt: skip
# No input is always 0 and all units are wide awake: every weight moves in every round.
WORDS = [
    *TRAINING,
    "data=synthetic_classes", f"data.num_clients={CLIENTS}", "data.samples_per_client=40",
    "data.num_features=6", "partition=natural",
]  # fmt: skip
STRATEGIES: dict[str, list[str]] = {
    "fedavg_finetune": [],
    "ditto": ["strategy.personal_epochs=3"],
    "fedrep": [],
    "fedproto": [],
}
MODEL = {"weights.0", "weights.1", "biases.0", "biases.1"}
BODY = {"weights.0", "biases.0"}
DOWN: dict[str, dict[str, set[str]]] = {
    "fedavg_finetune": {"arrays": MODEL},
    "ditto": {"arrays": MODEL},
    "fedrep": {"arrays": BODY},
    "fedproto": {"prototypes": {"mean", "known"}},
}
UP = {**DOWN, "fedproto": {"prototypes": {"sum", "count"}}}


@pytest.fixture(autouse=True)
def identity() -> None:
    ensure_task_identity()


def experiment_of(strategy: str, *more: str) -> Experiment:
    words = [*WORDS, f"strategy={strategy}", *STRATEGIES[strategy], *more]
    return load_experiment(to_json(load_config(words)))


class Wiretap:
    """Answers as usual, and keeps every message, as it would travel, and every private array."""

    def __init__(self) -> None:
        self.sent: list[RecordDict] = []
        self.replied: list[RecordDict] = []
        self.wire: list[bytes] = []
        self.private: dict[str, list[NDArray[Any]]] = {}

    def __call__(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        replies = answer(messages, contexts)
        for into, these in ((self.sent, messages), (self.replied, replies)):
            for message in these:
                content = plain(message.content)
                into.append(content)
                self.wire.append(wire_bytes(with_content(message, content)))
        for context in contexts:
            for key, record in context.state.array_records.items():
                self.private.setdefault(key, []).extend(a.numpy() for a in record.values())
        return replies


def tapped(strategy: str, rounds: int) -> tuple[Wiretap, list[RoundRecord]]:
    experiment = experiment_of(strategy, f"rounds={rounds}")
    tap, records = Wiretap(), list[RoundRecord]()
    grid = ContextGrid(to_json(experiment.config), CLIENTS, tap)
    loop = RoundLoop(
        config=experiment.config,
        strategy=build_strategy(experiment.config, experiment.data.task),
        grid=grid,
        standing=Standing(to_record(experiment.shared)),
        client_of=grid.client_id,
        on_round=records.append,
    )
    assert loop.run() == "completed"
    return tap, records


def windows(array: NDArray[Any]) -> list[bytes]:
    """Every run of three numbers."""
    flat = array.ravel()
    return [flat[start : start + 3].tobytes() for start in range(max(len(flat) - 2, 1))]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_private_arrays_travel_neither_by_name_nor_by_value(strategy: str) -> None:
    tap, records = tapped(strategy, rounds=3)
    trained = sum(len(record.clients["client"]) for record in records)
    told = 0
    for contents, allowed in ((tap.sent, DOWN), (tap.replied, UP)):
        for content in contents:
            names = {key: set(record) for key, record in content.array_records.items()}
            assert names in ({}, allowed[strategy])
            told += bool(names) and contents is tap.replied
    assert told == trained  # evaluation gives numbers only
    everything = b"\0".join(tap.wire)
    searched = 0
    for key, arrays in tap.private.items():
        for array in arrays:
            assert not any(window in everything for window in windows(array)), key
            searched += 1
    assert searched > 3 * CLIENTS
    # The control: the same search finds what does travel, in each of its runs.
    last = tap.replied[-CLIENTS - 1].array_records[next(iter(UP[strategy]))]
    for told_array in last.values():
        assert all(window in everything for window in windows(told_array.numpy()))


@pytest.mark.parametrize(
    ("strategy", "keys"),
    [
        ("fedavg_finetune", {"optimizer"}),
        ("ditto", {"optimizer", "personal-model", "personal-optimizer"}),
        ("fedrep", {"model", "optimizer", "head-optimizer"}),
        ("fedproto", {"model", "optimizer"}),
    ],
)
def test_all_that_is_kept_was_searched_for(strategy: str, keys: set[str]) -> None:
    tap, _ = tapped(strategy, rounds=1)
    assert tap.private.keys() == keys


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bytes_are_those_of_the_arrays_and_numbers_that_travel(strategy: str) -> None:
    tap, records = tapped(strategy, rounds=2)
    down = sum(record.metrics["bytes"]["down"] for record in records)
    up = sum(record.metrics["bytes"]["up"] for record in records)
    assert down == sum(map(content_bytes, tap.sent))
    assert up == sum(map(content_bytes, tap.replied))
    arrays = sum(
        len(array.data)
        for content in tap.replied
        for record in content.array_records.values()
        for array in record.values()
    )
    assert 0 < arrays < up < arrays + 300 * len(tap.replied)


@pytest.mark.parametrize("strategy", ["fedrep", "fedproto"])
def test_a_server_that_sends_private_parameters_gets_an_error(strategy: str) -> None:
    experiment = experiment_of(strategy)
    own = Context(1, 2, {"partition-id": 0}, RecordDict(), {"config": to_json(experiment.config)})
    message = Message(RecordDict({"arrays": to_record(experiment.initial)}), 2, "train")
    (reply,) = answer([message], [own])
    assert reply.has_error() and "which does not travel" in (reply.error.reason or "")
    assert not own.state.array_records


# ------------------------------------------------------------------ a client that diverges


def asked(
    grid: InProcessGrid, strategy: StackedFedAvg, round: int, clients: Sequence[int]
) -> Replies:
    """Training of some clients from the same weights in every round."""
    shared = to_record({name: p + 0.01 for name, p in grid.experiment.shared.items()})
    sent = list(strategy.configure_train(round, shared, ConfigRecord(), grid))
    chosen = [m for m in sent if grid.client_id(m.metadata.dst_node_id) in clients]
    replies = grid.send_and_receive(chosen)
    assert isinstance(replies, Replies)
    return replies


def spoilt(experiment: Experiment, client: int) -> Experiment:
    """A NaN among one client's training samples."""
    data = pooled(experiment.data)
    x_ND = data.x_ND.copy()
    x_ND[data.parts["train"].of(client)[0]] = np.nan
    return replace(experiment, data=replace(data, x_ND=x_ND))


def strategy_of(experiment: Experiment) -> StackedFedAvg:
    """One that sends whatever it may send, to everybody."""
    chosen = replace(experiment.config.strategy, fraction_train=1.0)
    made = build_strategy(replace(experiment.config, strategy=chosen), experiment.data.task)
    assert isinstance(made, StackedFedAvg)
    if hasattr(made, "known_O"):
        made.known_O += 1
    return made


POOLED = [
    "data=digits", "partition=iid", f"partition.num_clients={CLIENTS}", "training.epochs=2",
]  # fmt: skip


@pytest.mark.parametrize("bad", [1, 2])
@pytest.mark.parametrize("strategy", ["ditto", "fedrep", "fedproto"])
def test_who_diverges_keeps_all_that_it_had(strategy: str, bad: int) -> None:
    """As if it had not been asked in that round; the others go on."""
    words = [*TRAINING, *POOLED, f"strategy={strategy}", *STRATEGIES[strategy]]
    experiment = load_experiment(to_json(load_config(words)))
    made, everyone = strategy_of(experiment), range(CLIENTS)
    grid, never = InProcessGrid(experiment), InProcessGrid(experiment)
    broken = InProcessGrid(spoilt(experiment, 4))
    broken.states = grid.states
    for round in (1, 2, 3):
        replies = asked(broken if round == bad else grid, made, round, everyone)
        finite = np.isfinite(replies.numbers()["loss"])
        assert finite[:4].all() and finite[4] == (round != bad)
        asked(never, made, round, [0, 1, 2, 3] if round == bad else everyone)
    mine, theirs = grid.state(), never.state()
    assert mine.keys() == theirs.keys() and len(mine) > 3
    for path, array in mine.items():
        if path.endswith("#clients"):
            continue
        key = path.partition("/")[0]
        order, other = (state[f"{key}#clients"].argsort() for state in (mine, theirs))
        np.testing.assert_allclose(array[order], theirs[path][other], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(array[order][4], theirs[path][other][4])


def evaluated(grid: InProcessGrid, strategy: StackedFedAvg, shared: ArrayRecord) -> Any:
    sent = strategy.configure_evaluate(1, shared, ConfigRecord(), grid)
    replies = grid.send_and_receive(sent)
    assert isinstance(replies, Replies)
    return replies.numbers()


def test_who_diverges_in_fine_tuning_is_scored_with_the_global_model() -> None:
    words = [*TRAINING, *POOLED, "strategy=fedavg_finetune"]
    experiment = load_experiment(to_json(load_config(words)))
    made, shared = strategy_of(experiment), to_record(experiment.shared)
    fine = evaluated(InProcessGrid(experiment), made, shared)
    found = evaluated(InProcessGrid(spoilt(experiment, 4)), made, shared)
    for part in ("validation", "test"):
        own, whole = found[f"{part}-personalised-loss"], found[f"{part}-global-loss"]
        assert own[4] == pytest.approx(whole[4], abs=1e-6)
        assert (np.abs(own[:4] - whole[:4]) > 1e-3).all()
        np.testing.assert_allclose(own[:4], fine[f"{part}-personalised-loss"][:4], atol=1e-6)


def test_a_private_model_that_diverges_alone_leaves_its_client_in_the_federation() -> None:
    """Beyond lambda = 2 / (learning rate): the reply is good, and the global model is scored."""
    words = [*TRAINING, *POOLED, "strategy=ditto", "strategy.proximal_lambda=1e9"]
    experiment = load_experiment(to_json(load_config(words)))
    grid, made = InProcessGrid(experiment), strategy_of(experiment)
    replies = asked(grid, made, 1, range(CLIENTS))
    assert all(value.isfinite().all() for value in replies.arrays().values())
    found = evaluated(grid, made, to_record(experiment.shared))
    for name in ("loss", "accuracy"):
        np.testing.assert_array_equal(
            found[f"test-personalised-{name}"], found[f"test-global-{name}"]
        )


# ------------------------------------------------------------------ models that are all head


def test_fedrep_of_a_linear_model_is_training_alone() -> None:
    """Nothing is shared, so nothing is sent; the numbers are those of `local`."""
    words = [*POOLED, "model=linear", "rounds=3", "training.reset_optimizer=false"]
    results = []
    for more in (["strategy=local"], ["strategy=fedrep", "strategy.head_epochs=2"]):
        config = load_config([*words, *more])
        experiment = load_experiment(to_json(config))
        grid, records = InProcessGrid(experiment), list[RoundRecord]()
        loop = RoundLoop(
            config=config,
            strategy=build_strategy(config, experiment.data.task),
            grid=grid,
            standing=Standing(to_record(experiment.shared)),
            client_of=grid.client_id,
            on_round=records.append,
        )
        assert loop.run() == "completed"
        results.append([(r.metrics["test"], r.metrics["bytes"], r.clients) for r in records])
    assert results[0] == results[1]
    assert head_names(experiment.model) == experiment.initial.keys()


def test_a_head_of_ones_own() -> None:
    """`strategy.head` moves the border: here the first layer is private, the last is shared."""
    experiment = experiment_of("fedrep", "strategy.head=[weights.0,biases.0]")
    assert set(experiment.shared) == {"weights.1", "biases.1"}
    own = Context(1, 2, {"partition-id": 0}, RecordDict(), {"config": to_json(experiment.config)})
    message = Message(RecordDict({"arrays": to_record(experiment.shared)}), 2, "train")
    (reply,) = answer([message], [own])
    assert set(reply.content.array_records["arrays"]) == {"weights.1", "biases.1"}
    kept = from_record(own.state.array_records["model"])
    assert set(kept) == {"weights.0", "biases.0"}
    assert not any(torch.equal(value, experiment.initial[name]) for name, value in kept.items())
