import dataclasses
import logging
import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import strategy as flower
from flwr.serverapp.exception import AggregationError

from fedmoe.config import load_config
from fedmoe.errors import RunError
from fedmoe.messages.arrays import plain, to_record
from fedmoe.messages.seams import wire_bytes, with_content
from fedmoe.rounds import RoundLoop, RoundRecord, same_dtypes
from fedmoe.schema import ExperimentConfig
from fedmoe.simulations import ContextGrid
from fedmoe.standing import Standing
from fedmoe.strategies import FedAvg, StackedFedAvg

CLIENTS = 5
START = {"w": np.zeros((2, 2), np.float32), "b": np.ones(3, np.float32)}
Answered = RecordDict | Error | None  # None: no reply
Spoil = Callable[[int, int, RecordDict], Answered]


class Script:
    """Clients that add their number + 1 to each weight; what they score is given by round.

    Attributes:
        validation: by round, the accuracy (or mse) on validation data; test is 100 minus it.
        spoil: changes a training reply, given client and round.
        sent: all messages that came, in order.
        received: all replies, in order.
    """

    def __init__(
        self,
        validation: Sequence[float] = (),
        spoil: Spoil | None = None,
        measure: str = "accuracy",
        spoil_evaluation: Spoil | None = None,
    ) -> None:
        self.validation, self.measure = validation, measure
        self.spoil, self.spoil_evaluation = spoil, spoil_evaluation
        self.sent: list[Message] = []
        self.received: list[Message] = []
        self.grid = ContextGrid("{}", CLIENTS, self.answer)

    def answer(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        replies = []
        for message, context in zip(messages, contexts, strict=True):
            client = cast(int, context.node_config["partition-id"])
            config = cast(ConfigRecord, message.content["config"])
            number = cast(int, config["server-round"])
            training = message.metadata.message_type == MessageType.TRAIN
            content: Answered = self.train(message, client) if training else self.score(number)
            spoil = self.spoil if training else self.spoil_evaluation
            if spoil is not None:
                content = spoil(client, number, cast(RecordDict, content))
            if content is not None:
                replies.append(Message(cast(RecordDict, content), reply_to=message))
        self.sent += messages
        self.received += replies
        return replies

    def train(self, message: Message, client: int) -> RecordDict:
        arrays = cast(ArrayRecord, message.content["arrays"])
        return RecordDict(
            {
                "arrays": to_record({k: a.numpy() + client + 1 for k, a in arrays.items()}),
                "metrics": MetricRecord({"num-examples": examples(client), "loss": client / 2}),
            }
        )

    def score(self, number: int) -> RecordDict:
        metrics: dict[str, int | float] = {"num-examples": 10}
        if self.validation:
            value = self.validation[number - 1]
            metrics |= {
                "validation-num-examples": 10,
                f"validation-global-{self.measure}": value,
                "test-num-examples": 10,
                f"test-global-{self.measure}": 100 - value,
            }
        return RecordDict({"metrics": MetricRecord(dict(metrics))})


def examples(client: int) -> int:
    return 10 * (client + 1) ** 2


def average_step(clients: Iterable[int]) -> float:
    """How far one round of weighted averaging moves each weight."""
    chosen = list(clients)
    return sum((c + 1) * examples(c) for c in chosen) / sum(map(examples, chosen))


def lines(record: RoundRecord) -> list[dict[str, Any]]:
    """The lines of `clients.jsonl`."""
    return [
        dict(zip(record.clients, line, strict=True))
        for line in zip(*record.clients.values(), strict=True)
    ]


def config_of(**keywords: Any) -> ExperimentConfig:
    return load_config(model="linear", **keywords)


@dataclasses.dataclass
class Ran:
    loop: RoundLoop
    status: str
    records: list[RoundRecord]

    @property
    def weights(self) -> dict[str, Any]:
        return {name: a.numpy() for name, a in self.loop.standing.arrays.items()}

    def assert_moved(self, distance: float) -> None:
        for name, array in START.items():
            np.testing.assert_allclose(self.weights[name], array + distance, rtol=1e-6)
            assert self.weights[name].dtype == np.float32


def loop_of(
    script: Script, strategy: flower.Strategy | None = None, **keywords: Any
) -> tuple[RoundLoop, list[RoundRecord]]:
    config = config_of(**keywords)
    records: list[RoundRecord] = []
    loop = RoundLoop(
        config=config,
        strategy=strategy or FedAvg(seed=config.seed),
        grid=script.grid,
        standing=Standing(to_record(START)),
        client_of=script.grid.client_id,
        on_round=records.append,
    )
    return loop, records


def run(script: Script, strategy: flower.Strategy | None = None, **keywords: Any) -> Ran:
    loop, records = loop_of(script, strategy, **keywords)
    return Ran(loop, loop.run(), records)


# --------------------------------------------------------------------------------- good rounds


def test_rounds_move_the_weights_by_the_weighted_average() -> None:
    script = Script(validation=[0.1, 0.2, 0.3])
    ran = run(script, rounds=3)
    assert ran.status == "completed"
    ran.assert_moved(3 * average_step(range(CLIENTS)))
    assert [record.round for record in ran.records] == [1, 2, 3]
    assert [message.metadata.message_type for message in script.sent] == (
        ["train"] * CLIENTS + ["evaluate"] * CLIENTS
    ) * 3
    metrics = ran.records[1].metrics
    loss = sum(c / 2 * examples(c) for c in range(CLIENTS)) / sum(map(examples, range(CLIENTS)))
    assert metrics["train"] == {
        "loss": pytest.approx(loss),
        "clients": CLIENTS,
        "failures": 0,
        "void": False,
    }
    assert metrics["round"] == 2
    assert metrics["validation"]["global"]["accuracy"]["mean"] == pytest.approx(0.2)
    assert metrics["test"]["global"]["accuracy"]["mean"] == pytest.approx(99.8)
    assert ran.loop.standing.valid_rounds == 3


def test_evaluation_is_about_the_new_weights() -> None:
    script = Script()
    ran = run(script, rounds=1)
    evaluated = cast(ArrayRecord, script.sent[-1].content["arrays"])
    np.testing.assert_array_equal(evaluated["w"].numpy(), ran.weights["w"])


def test_every_client_that_was_asked_has_a_line() -> None:
    ran = run(Script(), FedAvg(seed=3, fraction_train=0.6), rounds=4)
    seen = []
    for number, record in enumerate(ran.records, start=1):
        assert len(lines(record)) == 3
        clients = [line["client"] for line in lines(record)]
        assert clients == sorted(clients)
        seen.append(tuple(clients))
        for line in lines(record):
            assert line["round"] == number
            assert (line["status"], line["reason"]) == ("ok", None)
            assert line["num_examples"] == examples(line["client"])
            assert line["loss"] == line["client"] / 2
    assert len(set(seen)) > 1


@pytest.mark.parametrize(("every", "evaluated"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (7, [5])])
def test_evaluate_every(every: int, evaluated: list[int]) -> None:
    ran = run(Script(validation=[0.1] * 5), rounds=5, evaluate_every=every)
    for record in ran.records:
        expected = record.round in evaluated
        assert (record.metrics["test"] is not None) == expected
        assert (record.metrics["validation"] is not None) == expected
    assert ran.loop.standing.final == ran.records[-1].metrics["test"]
    weighed = [
        r.round
        for r in ran.records
        if r.metrics["bytes"]["up"] > sum(c["bytes_up"] for c in lines(r))
    ]
    assert weighed == evaluated


def test_the_order_of_replies_changes_nothing() -> None:
    class Shuffled(Script):
        def answer(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
            order = random.Random(len(self.sent)).sample(range(len(messages)), len(messages))
            return super().answer([messages[i] for i in order], [contexts[i] for i in order])

    plainly, shuffled = run(Script(), rounds=3), run(Shuffled(), rounds=3)
    assert plainly.weights["b"].tobytes() == shuffled.weights["b"].tobytes()
    for one, other in zip(plainly.records, shuffled.records, strict=True):
        assert lines(one) == lines(other)


# -------------------------------------------------------------------------------- bad replies


def with_nan(content: RecordDict) -> RecordDict:
    arrays = {k: a.numpy().copy() for k, a in cast(ArrayRecord, content["arrays"]).items()}
    arrays["w"][0, 0] = math.nan
    content["arrays"] = to_record(arrays)
    return content


FAULTS: list[Any] = [
    pytest.param(lambda content: Error(2, "it raised"), "it raised", id="error"),
    pytest.param(with_nan, "arrays/w: not finite", id="nan"),
    pytest.param(lambda content: None, "no reply before the deadline", id="silent"),
]


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
def test_a_bad_client_fails_alone(
    fault: Callable[[RecordDict], Answered], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(client: int, number: int, content: RecordDict) -> Answered:
        return fault(content) if (client, number) == (1, 2) else content

    with caplog.at_level(logging.WARNING, logger="fedmoe"):
        ran = run(Script(spoil=spoil), rounds=3)
    ran.assert_moved(2 * average_step(range(5)) + average_step([0, 2, 3, 4]))
    first, second, third = ran.records
    assert [r.metrics["train"]["failures"] for r in ran.records] == [0, 1, 0]
    assert [r.metrics["train"]["clients"] for r in ran.records] == [5, 4, 5]
    assert not second.metrics["train"]["void"]
    line = lines(second)[1]
    down = line.pop("bytes_down")
    assert down == lines(first)[1]["bytes_down"] > 0
    assert line == {
        "round": 2, "client": 1, "status": "failed", "reason": reason,
        "num_examples": None, "loss": None, "bytes_up": 0,
    }  # fmt: skip
    assert [one["status"] for one in lines(second)] == ["ok", "failed", "ok", "ok", "ok"]
    assert f"round 2, client 1 failed to train: {reason}" in caplog.messages
    up = sum(one["bytes_up"] for one in lines(second))
    assert (
        first.metrics["bytes"]["up"] - second.metrics["bytes"]["up"]
        == (lines(first)[1]["bytes_up"])
    )
    assert up == sum(one["bytes_up"] for one in lines(third)) - lines(first)[1]["bytes_up"]


def test_a_bad_evaluation_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def spoil(client: int, number: int, content: RecordDict) -> Answered:
        if client == 4:
            return Error(2, "no data")
        cast(MetricRecord, content["metrics"])["test-global-accuracy"] = client / 10
        return content

    with caplog.at_level(logging.WARNING, logger="fedmoe"):
        ran = run(Script(validation=[0.5], spoil_evaluation=spoil), rounds=1)
    assert ran.records[0].metrics["test"]["global"]["accuracy"]["mean"] == pytest.approx(0.15)
    assert caplog.messages == ["round 1, client 4 failed to evaluate: no data"]
    assert ran.records[0].metrics["train"]["failures"] == 0


def test_clients_that_are_not_in_the_scores_are_counted() -> None:
    def spoil(client: int, number: int, content: RecordDict) -> Answered:
        return Error(2, "no data") if number == 2 and client > 2 else content

    ran = run(Script(validation=[0.5, 0.5, 0.5], spoil_evaluation=spoil), rounds=3)
    assert [record.metrics["missing"] for record in ran.records] == [0, 2, 0]
    assert ran.loop.standing.missing == 0
    shorter = run(Script(validation=[0.5, 0.5], spoil_evaluation=spoil), rounds=2)
    assert shorter.loop.standing.missing == 2


def test_a_client_that_goes_on_failing_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    def spoil(client: int, number: int, content: RecordDict) -> Answered:
        return Error(2, "down") if client == 1 and number in (1, 2, 4) else content

    with caplog.at_level(logging.WARNING, logger="fedmoe"):
        run(Script(spoil=spoil), rounds=4)
    assert caplog.messages == [
        "round 1, client 1 failed to train: down",
        "round 4, client 1 failed to train: down",  # it had recovered in between
    ]


# -------------------------------------------------------------------------------- void rounds


def failing(*clients: int, rounds: Sequence[int] = range(1, 100)) -> Spoil:
    def spoil(client: int, number: int, content: RecordDict) -> Answered:
        return Error(2, "down") if client in clients and number in rounds else content

    return spoil


@pytest.mark.parametrize(("least", "void"), [(3, False), (4, True)])
def test_too_few_good_replies_void_the_round(least: int, void: bool) -> None:
    script = Script(spoil=failing(0, 3, rounds=[1]), validation=[0.1, 0.2])
    ran = run(script, rounds=2, runtime={"min_replies": least})
    ran.assert_moved(average_step(range(5)) + (0 if void else average_step([1, 2, 4])))
    train = ran.records[0].metrics["train"]
    assert train["void"] is void
    assert (train["loss"] is None) is void
    assert (train["clients"], train["failures"]) == (3, 2)
    assert ran.loop.standing.valid_rounds == 2 - void
    assert ran.records[0].metrics["test"] is not None  # what it has is evaluated
    assert [line["status"] for line in lines(ran.records[0])].count("ok") == 3
    assert not ran.records[1].metrics["train"]["void"]


def test_a_void_round_leaves_the_very_same_weights() -> None:
    loop, _ = loop_of(Script(spoil=failing(*range(5), rounds=[1])), rounds=2)
    seen = [loop.standing.arrays]
    loop.on_round = lambda record: seen.append(loop.standing.arrays)
    loop.run()
    assert seen[1] is seen[0]
    assert seen[2] is not seen[0]


def test_only_void_rounds_end_in_an_error() -> None:
    loop, records = loop_of(Script(spoil=failing(*range(5))), rounds=3)
    with pytest.raises(RunError, match="every round was void"):
        loop.run()
    assert [record.metrics["train"]["void"] for record in records] == [True] * 3


@pytest.mark.parametrize(
    "stopping", [{"patience": 1}, {"patience": None, "target": 0.5, "min_delta": 0.0}]
)
def test_an_early_stop_does_not_hide_that_nothing_was_learned(stopping: dict[str, Any]) -> None:
    script = Script(spoil=failing(*range(5)), validation=[0.5] * 9)
    loop, records = loop_of(script, rounds=9, stopping=stopping)
    with pytest.raises(RunError, match="every round was void"):
        loop.run()
    assert len(records) < 9


class Raising(flower.FedAvg):
    """A strategy of Flower's whose merging fails in round 2."""

    def __init__(self, error: Exception, where: str) -> None:
        super().__init__()
        self.error, self.where = error, where

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        if server_round == 2 and self.where == "train":
            raise self.error
        return super().aggregate_train(server_round, replies)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        if server_round == 2 and self.where == "evaluate":
            raise self.error
        return super().aggregate_evaluate(server_round, replies)


MERGE_ERRORS = [AggregationError("cannot"), ValueError("cannot"), ZeroDivisionError("cannot")]


@pytest.mark.parametrize("error", MERGE_ERRORS, ids=lambda error: type(error).__name__)
def test_an_aggregation_that_fails_voids_the_round(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="fedmoe"):
        ran = run(Script(), Raising(error, "train"), rounds=3)
    ran.assert_moved(2 * average_step(range(5)))
    assert [r.metrics["train"]["void"] for r in ran.records] == [False, True, False]
    assert "round 2 is void: cannot" in caplog.messages


@pytest.mark.parametrize("error", MERGE_ERRORS, ids=lambda error: type(error).__name__)
def test_an_evaluation_that_cannot_be_merged_costs_nothing(error: Exception) -> None:
    ran = run(Script(validation=[0.5] * 3), Raising(error, "evaluate"), rounds=3)
    ran.assert_moved(3 * average_step(range(5)))
    assert not any(r.metrics["train"]["void"] for r in ran.records)
    assert ran.records[1].metrics["test"]["global"]["accuracy"]["mean"] == pytest.approx(99.5)


@pytest.mark.parametrize("where", ["train", "evaluate"])
def test_a_defect_of_a_strategy_is_not_hidden(where: str) -> None:
    loop, records = loop_of(Script(), Raising(TypeError("a defect"), where), rounds=3)
    with pytest.raises(TypeError, match="a defect"):
        loop.run()
    assert [record.round for record in records] == [1]


def test_a_stock_strategy_that_wants_more_replies() -> None:
    """Flower's Bulyan makes nothing of fewer than 4 f + 3 replies."""
    loop, records = loop_of(Script(), flower.Bulyan(num_malicious_nodes=2), rounds=2)
    with pytest.raises(RunError, match="every round was void"):
        loop.run()
    assert all(record.metrics["train"]["void"] for record in records)


class Reporting(StackedFedAvg):
    """Leaves something that looks like insights."""

    def __init__(self) -> None:
        super().__init__()
        self.insight_lines: dict[str, list[int]] = {}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        self.insight_lines = {"round": [server_round, server_round]}
        return super().aggregate_train(server_round, replies)


def test_a_void_round_has_no_insights() -> None:
    script = Script(spoil=failing(*range(5), rounds=[2]))
    ran = run(script, Reporting(), rounds=3)
    lines = [record.insights for record in ran.records]
    assert lines == [{"round": [1, 1]}, {}, {"round": [3, 3]}]
    assert ran.loop.standing.insights == 4


# ------------------------------------------------------------------------------ strategies


def test_what_flowers_fedadam_returns_is_cast_back() -> None:
    returned: list[str] = []

    class Spying(flower.FedAdam):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            assert arrays is not None
            returned.extend(a.dtype for a in arrays.values())
            return arrays, metrics

    ran = run(Script(), Spying(eta=0.5), rounds=2)
    assert set(returned) == {"float64"}
    assert {a.dtype for a in ran.loop.standing.arrays.values()} == {"float32"}
    assert (ran.weights["w"] > START["w"]).all()
    assert [r.metrics["train"]["failures"] for r in ran.records] == [0, 0]  # round 2 fits too


def test_same_dtypes() -> None:
    like = to_record({"a": np.zeros(1, np.float32), "b": np.zeros(1, np.int64)})
    other = to_record({"a": np.array([1 / 3]), "b": np.array([2.0])})
    cast_back = same_dtypes(other, like)
    assert {k: a.numpy().tolist() for k, a in cast_back.items()} == {
        "a": [float(np.float32(1 / 3))],
        "b": [2],
    }
    assert [a.dtype for a in cast_back.values()] == ["float32", "int64"]
    fitting = to_record({"a": np.ones(1, np.float32)})
    assert same_dtypes(fitting, like) is fitting


def test_a_strategy_without_weights_leaves_them() -> None:
    class NoWeights(StackedFedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            return None, super().aggregate_train(server_round, replies)[1]

    loop, records = loop_of(Script(), NoWeights(), rounds=1)
    before = loop.standing.arrays
    loop.run()
    assert loop.standing.arrays is before
    assert not records[0].metrics["train"]["void"]


def test_flowers_sampling_follows_our_seed_and_leaves_the_global_generator() -> None:
    def asked(seed: int) -> list[list[int]]:
        strategy = flower.FedAvg(fraction_train=0.4, fraction_evaluate=0.4)
        script = Script()
        state = random.getstate()
        ran = run(script, strategy, rounds=6, seed=seed)
        assert random.getstate() == state
        evaluated = [m.metadata.dst_node_id for m in script.sent[2:] if is_evaluation(m)]
        return [[line["client"] for line in lines(r)] for r in ran.records] + [evaluated]

    def is_evaluation(message: Message) -> bool:
        return message.metadata.message_type == MessageType.EVALUATE

    random.seed(1)
    first = asked(0)
    random.seed(2)
    assert asked(0) == first
    assert asked(1) != first
    assert len({tuple(clients) for clients in first[:-1]}) > 1  # rounds differ
    assert all(clients == sorted(clients) for clients in first[:-1])  # lines are in order


# ------------------------------------------------------------------------------ best and stop


def test_the_best_round_is_chosen_by_validation_and_not_by_test() -> None:
    ran = run(Script(validation=[0.2, 0.9, 0.4]), rounds=3)  # on test: 99.8, 99.1, 99.6
    best, final = ran.loop.standing.best, ran.loop.standing.final
    assert best is not None and final is not None
    assert best["round"] == 2
    assert best["global"]["accuracy"]["mean"] == pytest.approx(99.1)
    assert final["global"]["accuracy"]["mean"] == pytest.approx(99.6)
    assert ran.loop.standing.best_objective == pytest.approx(0.9)


STOPS: list[Any] = [
    ("accuracy", [0.1, 0.3, 0.3, 0.2, 0.9], {"patience": 2}, 4, "no improvement in 2 evaluations"),
    ("mse", [9.0, 3.0, 3.0, 4.0, 0.1], {"patience": 2}, 4, "no improvement in 2 evaluations"),
    ("accuracy", [0.1, 0.5, 0.4, 0.9, 0.9], {"target": 0.5}, 2, "validation reached 0.5"),
    ("mse", [9.0, 5.0, 0.4, 0.1, 0.1], {"target": 0.5}, 3, "validation reached 0.4"),
    ("mse", [9.0, 5.0, 4.95, 4.0, 0.1], {"patience": 1, "min_delta": 0.1}, 3, "no improvement"),
]


@pytest.mark.parametrize(("measure", "values", "stopping", "last", "reason"), STOPS)
def test_early_stop(
    measure: str, values: list[float], stopping: dict[str, Any], last: int, reason: str
) -> None:
    ran = run(Script(values, measure=measure), rounds=5, stopping=stopping)
    assert ran.status.startswith(f"stopped: {reason}")
    assert [record.round for record in ran.records] == list(range(1, last + 1))


def test_a_stop_in_the_last_round_is_no_stop() -> None:
    assert run(Script([0.5, 0.5]), rounds=2, stopping={"patience": 1}).status == "completed"


def test_a_loop_goes_on_from_where_it_stands() -> None:
    loop, records = loop_of(Script([0.1] * 5), rounds=5)
    loop.standing.round = 3
    assert loop.run() == "completed"
    assert [record.round for record in records] == [4, 5]


# ----------------------------------------------------------------------------------- bytes


def honest_bytes(content: RecordDict) -> int:
    """Arrays as they are serialised, eight bytes a number, and the metrics' names."""
    total = 0
    for record in content.values():
        for key, value in record.items():
            if isinstance(record, ArrayRecord):
                total += len(record[key].data)
            else:
                total += len(key) + (len(value) if isinstance(value, str) else 8)
    return total


@pytest.mark.parametrize("strategy", [FedAvg(seed=0), flower.FedAvg()], ids=["ours", "stock"])
def test_bytes_are_those_of_what_travelled(strategy: flower.Strategy) -> None:
    script = Script(validation=[0.5])
    (record,) = run(script, strategy, rounds=1).records
    down = sum(honest_bytes(message.content) for message in script.sent)
    up = sum(honest_bytes(reply.content) for reply in script.received)
    assert record.metrics["bytes"] == {"up": up, "down": down}
    trained = script.received[:CLIENTS]
    for line, message, reply in zip(lines(record), script.sent, trained, strict=False):
        assert line["bytes_down"] == honest_bytes(message.content)
        assert line["bytes_up"] == honest_bytes(reply.content)
        # On the wire come names, types and metadata on top: some hundred bytes.
        for counted, sent in ((line["bytes_down"], message), (line["bytes_up"], reply)):
            wire = len(wire_bytes(with_content(sent, plain(sent.content))))
            assert counted < wire < counted + 600


def test_totals_of_bytes_and_seconds() -> None:
    ran = run(Script(), rounds=3)
    standing = ran.loop.standing
    assert standing.bytes_up == sum(r.metrics["bytes"]["up"] for r in ran.records)
    assert standing.bytes_down == sum(r.metrics["bytes"]["down"] for r in ran.records)
    assert standing.seconds == sum(r.metrics["seconds"] for r in ran.records) > 0
