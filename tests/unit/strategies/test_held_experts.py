"""Clients that are sent some of a mixture's experts, as under a memory budget; and bad messages.

What a client is sent is in its personal records: `experts` with the experts' ascending `index`,
and `arrays` with their rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord
from mixture_oracle import PlainClients, PlainFedEm, PlainIfca, stacked
from mixture_runs import STRATEGIES, assert_close, experiment_of, one_by_one
from torch import Tensor

from fedmoe.clients import Experiment
from fedmoe.config import to_json
from fedmoe.messages.arrays import from_record, to_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.seams import RecordType
from fedmoe.models import Parameters
from fedmoe.phase import message_sizes
from fedmoe.simulations import ContextGrid, InProcessGrid

EXPERTS = 4
HELD = ([0, 2], [1, 3], [0, 1, 2, 3], [2], [1, 2, 3], [0, 3])
LATER = ([1, 2], [0], [0, 3], [1, 2, 3], [0, 1, 2, 3], [2, 3])
FOUR = {
    "fedem": ["strategy=fedem", f"strategy.num_components={EXPERTS}"],
    "ifca": ["strategy=ifca", f"strategy.num_clusters={EXPERTS}", "strategy.restarts=1"],
    "mixture": [
        "strategy=fedavg", "model=moe", f"model.num_experts={EXPERTS}", "model.hidden=[3]",
        "model.router.top_k=2",
    ],
}  # fmt: skip
KEPT = ["training.reset_optimizer=false"]
ADAM = ["training=adam", *KEPT]
Grid = InProcessGrid | ContextGrid


def models_of(experiment: Experiment, seed: int) -> list[Parameters]:
    """A global model for each client: no two are sent the same."""
    draw = torch.Generator().manual_seed(seed)
    return [
        {n: v + 0.3 * torch.randn(v.shape, generator=draw) for n, v in experiment.shared.items()}
        for _ in HELD
    ]


def personal(
    models: Sequence[Mapping[str, Tensor]], held: Sequence[list[int]], kind: str, round: int
) -> Broadcast:
    """Each client's own message; the broadcast's arrays are nobody's."""
    own = [
        {
            "arrays": to_record({name: value[index] for name, value in model.items()}),
            "experts": to_record({"index": torch.tensor(index)}),
        }
        for model, index in zip(models, held, strict=True)
    ]
    config = ConfigRecord({"server-round": round})
    common: dict[str, RecordType] = {"arrays": to_record(models[0]), "config": config}
    return Broadcast(range(2, 2 + len(own)), kind, common, personal=own)


def grids(experiment: Experiment) -> tuple[Grid, Grid]:
    """All in cohorts, and each alone."""
    config = to_json(experiment.config)
    return InProcessGrid(experiment), ContextGrid(config, len(HELD), one_by_one)


def answers(grid: Grid, sent: Broadcast) -> list[Message]:
    replies = list(grid.send_and_receive(sent))
    assert not [reply.error.reason for reply in replies if reply.has_error()]
    return replies


def private(grid: Grid) -> dict[tuple[int, str], np.ndarray[Any, Any]]:
    """What every client keeps, by client and path."""
    kept = grid.state()
    if isinstance(grid, ContextGrid):
        split = (path.split("/", maxsplit=1) for path in kept)
        return {(int(c), name): kept[f"{c}/{name}"] for c, name in split}
    return {
        (client, path): array[row]
        for path, array in kept.items()
        if "#" not in path
        for row, client in enumerate(kept[f"{path.partition('/')[0]}#clients"].tolist())
    }


def told(reply: Message, key: str) -> Parameters:
    return from_record(reply.content.array_records[key])


@pytest.mark.parametrize("words", FOUR.values(), ids=FOUR)
@pytest.mark.parametrize("more", [[], KEPT, ADAM], ids=["fresh", "kept", "adam"])
def test_cohorts_of_unlike_subsets_are_the_same_as_each_alone(
    words: list[str], more: list[str]
) -> None:
    experiment = experiment_of([*words, *more])
    together, alone = grids(experiment)
    for round, held in enumerate((HELD, LATER), start=1):
        models = models_of(experiment, round)
        for kind in ("train", "evaluate"):
            sent = [personal(models, held, kind, round) for _ in range(2)]
            pairs = zip(answers(together, sent[0]), answers(alone, sent[1]), strict=True)
            for mine, theirs in pairs:
                assert set(mine.content) == set(theirs.content)
                for key in mine.content.array_records:
                    assert_close(told(mine, key), told(theirs, key))
                numbers = dict(theirs.content.metric_records["metrics"])
                assert dict(mine.content.metric_records["metrics"]) == pytest.approx(
                    numbers, abs=1e-5
                )
    kept, kept_alone = private(together), private(alone)
    assert kept.keys() == kept_alone.keys()
    for path, array in kept.items():
        np.testing.assert_allclose(array, kept_alone[path], rtol=0, atol=1e-5)


@pytest.mark.parametrize("words", FOUR.values(), ids=FOUR)
def test_clients_with_equally_many_experts_are_one_cohort(words: list[str]) -> None:
    experiment = experiment_of(words)
    grid = InProcessGrid(experiment)
    for kind in ("train", "evaluate"):
        sent = personal(models_of(experiment, 0), HELD, kind, 1)
        parts = grid.send_and_receive(sent).parts  # type: ignore[attr-defined]
        assert sorted(sorted(part.rows.tolist()) for part in parts) == [[0, 1, 5], [2], [3], [4]]


def test_components_that_were_not_sent_keep_their_proportions() -> None:
    """The others share what they had; all rounds are as with these components alone."""
    experiment = experiment_of([*FOUR["fedem"], *KEPT])
    clients, grid = PlainClients(experiment), InProcessGrid(experiment)
    proportions = [[1 / EXPERTS] * EXPERTS for _ in HELD]
    for round, held in enumerate((HELD, LATER, HELD), start=1):
        models = models_of(experiment, round)
        before = private(grid)
        replies = answers(grid, personal(models, held, "train", round))
        clients.kept.clear()
        for client, index in enumerate(held):
            plain = PlainFedEm(clients, {n: v[index] for n, v in models[client].items()})
            share = sum(proportions[client][e] for e in index)
            plain.proportions[client] = [proportions[client][e] / share for e in index]
            if round == 1:  # later, momentum goes on, which the loop knows for whole models only
                plain.round(round, [client])
                assert_close(told(replies[client], "arrays"), plain.shared())
            else:
                plain.proportions[client] = plain.expect(client)
            for e, own in zip(index, plain.proportions[client], strict=True):
                proportions[client][e] = share * own
            kept = private(grid)
            found = torch.from_numpy(kept[client, "model/router.prior"]).softmax(0)
            torch.testing.assert_close(found, torch.tensor(proportions[client]), rtol=0, atol=1e-5)
            away = [e for e in range(EXPERTS) if e not in index]
            for path in ("model/router.prior", "optimizer/momentum.experts.weight"):
                now = kept[client, path][away]
                then = before.get((client, path), np.zeros_like(kept[client, path]))[away]
                assert now.tobytes() == then.tobytes()


def test_the_momentum_of_an_expert_waits_until_it_is_sent_again() -> None:
    """Two rounds with all components are the same with a round without one of them between."""
    experiment = experiment_of([*FOUR["fedem"], *KEPT, "training.weight_decay=0"])
    everything = [list(range(EXPERTS))] * len(HELD)
    model = models_of(experiment, 3)
    velocity = []
    for between in (False, True):
        grid = InProcessGrid(experiment)
        answers(grid, personal(model, everything, "train", 1))
        if between:
            answers(grid, personal(model, [[0, 1, 3]] * len(HELD), "train", 2))
        velocity.append(private(grid))
    for client in range(len(HELD)):
        for name in ("weight", "bias"):
            path = f"optimizer/momentum.experts.{name}"
            one, other = velocity[0][client, path], velocity[1][client, path]
            assert one[2].tobytes() == other[2].tobytes() and one[2].any()
            assert (one[[0, 1, 3]] != other[[0, 1, 3]]).any()


def test_the_index_of_a_chosen_model_is_that_among_all() -> None:
    experiment = experiment_of(FOUR["ifca"])
    clients, grid = PlainClients(experiment), InProcessGrid(experiment)
    models = models_of(experiment, 5)
    replies = answers(grid, personal(models, HELD, "train", 1))
    scores = answers(grid, personal(models, HELD, "evaluate", 1))
    places = set()
    for client, index in enumerate(HELD):
        plain = PlainIfca(clients, {n: v[index] for n, v in models[client].items()})
        expected = clients.score(client, "test", plain.personal(client))
        own = scores[client].content.metric_records["metrics"]
        assert own["test-personalised-loss"] == pytest.approx(expected.loss, abs=1e-5)
        plain.round(1, [client])
        place = plain.chosen[1, client]
        assert told(replies[client], "experts")["index"].tolist() == [index[place]]
        assert told(replies[client], "experts")["examples"].tolist() == [clients.count(client)]
        assert_close(told(replies[client], "arrays"), stacked([plain.models[place]]))
        places.add(index[place] - place)
    assert places - {0}, "the place among those that were sent must differ from the index"


def test_of_the_components_that_were_sent_the_global_model_has_equal_shares() -> None:
    experiment = experiment_of(FOUR["fedem"])
    clients, grid = PlainClients(experiment), InProcessGrid(experiment)
    models = models_of(experiment, 6)
    answers(grid, personal(models, HELD, "train", 1))
    for client, reply in enumerate(answers(grid, personal(models, HELD, "evaluate", 1))):
        own = {name: value[HELD[client]] for name, value in models[client].items()}
        plain = PlainFedEm(clients, own)
        expected = clients.score(client, "validation", plain.general())
        scores = reply.content.metric_records["metrics"]
        assert scores["validation-global-loss"] == pytest.approx(expected.loss, abs=1e-5)


def test_bytes_are_counted_as_they_travel() -> None:
    """One's own arrays go in place of everybody's."""
    experiment = experiment_of(FOUR["fedem"])
    sent = personal(models_of(experiment, 0), HELD, "train", 1)
    before = message_sizes(sent)
    assert before == message_sizes(list(sent))
    assert len(set(before.values())) == len({len(index) for index in HELD})


# --------------------------------------------------------------------------- bad messages

Spoil = Callable[[Message, Experiment], None]


def index(value: Any) -> Spoil:
    def spoil(message: Message, experiment: Experiment) -> None:
        message.content["experts"] = to_record({"index": np.asarray(value)})

    return spoil


def sends(*rows: int) -> Spoil:
    """Arrays with these experts."""

    def spoil(message: Message, experiment: Experiment) -> None:
        own = {name: value[list(rows)] for name, value in experiment.shared.items()}
        message.content["arrays"] = to_record(own)

    return spoil


def too_much(name: str) -> Spoil:
    def spoil(message: Message, experiment: Experiment) -> None:
        message.content["arrays"] = to_record({**experiment.shared, name: experiment.initial[name]})

    return spoil


def all_of_it(message: Message, experiment: Experiment) -> None:
    message.content["arrays"] = to_record(experiment.initial)


def without_arrays(message: Message, experiment: Experiment) -> None:
    del message.content["arrays"]


def no_numbers(message: Message, experiment: Experiment) -> None:
    message.content["experts"] = MetricRecord({"index": 1})


def more_than_the_index(message: Message, experiment: Experiment) -> None:
    message.content["experts"] = to_record({"index": np.zeros(1, np.int64), "rows": np.zeros(1)})


def both(*spoils: Spoil) -> Spoil:
    def spoil(message: Message, experiment: Experiment) -> None:
        for one in spoils:
            one(message, experiment)

    return spoil


MUST = "must ascend and lie in 0..2"
BAD: list[tuple[str, str, Spoil, str]] = [
    ("fedem", "descending", both(sends(2, 0), index([2, 0])), f"experts [2, 0] {MUST}"),
    ("fedem", "repeated", both(sends(1, 1), index([1, 1])), f"experts [1, 1] {MUST}"),
    ("ifca", "out-of-range", both(sends(0, 1), index([0, 3])), f"experts [0, 3] {MUST}"),
    ("fedem", "below-0", both(sends(0, 1), index([-1, 0])), f"experts [-1, 0] {MUST}"),
    ("ifca", "none", both(sends(), index(np.zeros(0, np.int64))), f"experts [] {MUST}"),
    ("fedem", "int32", index(np.zeros(1, np.int32)), "experts' index is int32 (1,)"),
    ("fedem", "a-number", index(0), "experts' index is int64 ()"),
    ("ifca", "a-table", index([[0, 1]]), "experts' index is int64 (1, 2)"),
    ("fedem", "numbers", no_numbers, "record 'experts' must be an ArrayRecord"),
    ("fedem", "more", more_than_the_index, "record 'experts' must hold the array index"),
    ("fedem", "other-rows", both(sends(0), index([0, 2])),
     "has experts.weight of shape (1, 3, 4), expected (2, 3, 4)"),
    ("ifca", "all-rows", index([0, 2]), "of shape (3, 3, 4), expected (2, 3, 4)"),
    ("fedem", "too-few-rows", sends(0, 1), "of shape (2, 3, 4), expected (3, 3, 4)"),
    ("fedavg", "no-experts", index([0]), "experts were sent for a model that has none"),
    ("local_global", "private-experts", index([0]), "whose experts do not all travel"),
    ("fedem", "private-prior", too_much("router.prior"),
     "the received model has router.prior, which does not travel"),
    ("ifca", "private-choice", too_much("router.assignment"),
     "the received model has router.assignment, which does not travel"),
    ("local_global", "private-gate", too_much("router.weight"),
     "the received model has router.weight, which does not travel"),
    ("local_global", "private-expert", all_of_it, "the received model has router."),
    ("fedem", "no-arrays", without_arrays, "no model was sent"),
    ("ifca", "no-arrays", without_arrays, "no model was sent"),
    ("local_global", "no-arrays", without_arrays, "no model was sent"),
    ("fedavg", "experts-alone", both(without_arrays, index([0])), "no model was sent"),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("strategy", "name", "spoil", "reason"), BAD, ids=[f"{one[0]}-{one[1]}" for one in BAD]
)
def test_a_bad_message_is_one_clients_error(
    strategy: str, name: str, spoil: Spoil, reason: str, kind: str
) -> None:
    words = STRATEGIES.get(strategy, [f"strategy={strategy}"])
    experiment = experiment_of([*words, *KEPT])
    together, alone = grids(experiment)
    for grid in (together, alone):
        common: dict[str, RecordType] = {
            "arrays": to_record(experiment.shared), "config": ConfigRecord()
        }  # fmt: skip
        nodes = list(range(2, 2 + len(HELD)))
        expected = answers(grid, Broadcast(nodes, kind, common))
        before = private(grid)
        for bad in (0, 3):
            spoilt = list(Broadcast(nodes, kind, common))
            spoil(spoilt[bad], experiment)
            replies = list(grid.send_and_receive(spoilt))
            for client, reply in enumerate(replies):
                if client == bad:
                    assert reply.has_error()
                    assert reason in (reply.error.reason or "")
                    assert (reply.error.reason or "").startswith("ValueError: ")
                    continue
                numbers = dict(reply.content.metric_records["metrics"])
                assert set(numbers) == set(expected[client].content.metric_records["metrics"])
            after = private(grid)
            assert before.keys() == after.keys()
            for (client, path), array in before.items():
                if client == bad:
                    np.testing.assert_array_equal(after[client, path], array)
            before = after
