"""What is asked and told, once; what is refused; and that a checkpoint knows all of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedmoe.clients import answer, load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.guard import ReplyGuard
from fedmoe.messages.arrays import to_record
from fedmoe.messages.replies import Replies
from fedmoe.messages.sizes import content_bytes
from fedmoe.messages.words import get_guidance, get_insight, wanted_payloads
from fedmoe.schema import ExperimentConfig
from fedmoe.simulations import ContextGrid, InProcessGrid
from fedmoe.strategies import Insights, build_strategy
from fedmoe.strategies.state import restore_strategy, strategy_state

WORDS = [
    "data=synthetic_classes", "data.num_clients=5", "data.samples_per_client=30",
    "data.num_features=4", "data.num_classes=3", "partition=natural", "model=linear",
]  # fmt: skip
PROTOTYPES = 4 * 3 * (4 + 1)  # bytes: sums and counts of three classes of four features
ALIKE = "meta_learner.prototypes.of=federation"  # all are told the same, of one payload
INSIGHT = [*WORDS, "strategy=insight", ALIKE]
GAUSSIANS = [*WORDS, "strategy=insight", "meta_learner=gaussians", "insight.rank=4"]
FEDAVG = [*WORDS, "strategy=fedavg", "meta_learner=prototypes", ALIKE]


class Rounds:
    """A strategy and its clients, round by round.

    Attributes:
        strategy: with insights.
        grid: with the clients' contexts.
        sent: the last round's messages.
        replies: what came back, by client: columns, or messages that may be changed.
        failures: what the guard found, by client.
    """

    def __init__(self, words: Sequence[str], *, columns: bool = False) -> None:
        self.config: ExperimentConfig = load_config(list(words))
        text = to_json(self.config)
        self.experiment = load_experiment(text)
        self.grid: InProcessGrid | ContextGrid = (
            InProcessGrid(self.experiment) if columns else ContextGrid(text, 5, answer)
        )
        self.strategy = self.built()
        self.round = 0
        self.sent: Sequence[Message] = []
        self.replies: Sequence[Message] = []
        self.failures: dict[int, str] = {}

    def built(self) -> Insights:
        strategy = build_strategy(self.config, self.experiment.data.task)
        assert isinstance(strategy, Insights)
        return strategy

    def ask(self) -> None:
        self.round += 1
        weights = to_record(self.experiment.shared)
        sent = self.strategy.configure_train(self.round, weights, ConfigRecord(), self.grid)
        assert isinstance(sent, Sequence)
        self.sent = sent

    def receive(self) -> None:
        came = self.grid.send_and_receive(self.sent)
        columns = isinstance(self.grid, InProcessGrid) and isinstance(came, Replies)
        self.replies = came if columns else list(came)  # type: ignore[assignment]

    def learn(self) -> None:
        guard = ReplyGuard(self.config.runtime, self.strategy)
        found = guard.inspect(self.sent, self.replies)
        self.failures = {node - 2: reason for node, reason in found.failures.items()}
        self.strategy.aggregate_train(self.round, found.good)

    def go(self, rounds: int = 1) -> "Rounds":
        for _ in range(rounds):
            self.ask()
            self.receive()
            self.learn()
        return self

    @property
    def asked(self) -> list[tuple[str, ...] | None]:
        """Which payloads each client was asked for."""
        return [wanted_payloads(message.content) for message in self.sent]

    @property
    def told(self) -> list[list[str]]:
        """Which parts of guidance each client was told."""
        return [sorted(get_guidance(message.content).parts) for message in self.sent]

    @property
    def payload_bytes(self) -> list[int]:
        return [
            sum(a.nbytes for a in get_insight(reply.content).payload.values())
            for reply in self.replies
        ]


NOW = ["prototype_weight", "prototypes"]


@pytest.mark.parametrize("words", [INSIGHT, FEDAVG], ids=["insight", "fedavg"])
def test_data_and_guidance_travel_once(words: list[str]) -> None:
    rounds = Rounds(words)
    for number in range(1, 5):
        rounds.go()
        assert rounds.payload_bytes == 5 * [PROTOTYPES if number == 1 else 0]
        assert rounds.asked == 5 * [("prototypes",) if number == 1 else ()]
        assert rounds.told == 5 * [NOW if number == 2 else []]
        held = [get_insight(reply.content).guidance_parts for reply in rounds.replies]
        assert held == 5 * [0 if number == 1 else 2]
    (size,) = {content_bytes(message.content) for message in rounds.sent}
    weights = content_bytes(RecordDict({"arrays": to_record(rounds.experiment.shared)}))
    asked = len("payloads") + len("server-round") + 8
    assert size == asked + (weights if words is FEDAVG else 0)  # and nothing else


def test_guidance_travels_once_where_some_are_told_nothing() -> None:
    """Clients of few samples stand anywhere among the others, who train in another order."""
    words = [
        "data=digits", "partition=dirichlet", "partition.alpha=0.1", "partition.num_clients=12",
        "model=linear", "strategy=insight", "insight.min_count=40",
    ]  # fmt: skip
    rounds = Rounds(words, columns=True).go(2)
    nothing = [not told for told in rounds.told]
    assert 0 < sum(nothing) < 11
    for _ in range(2):
        assert rounds.go().told == 12 * [[]]
    parts = [len(has) for has in rounds.strategy.exchange.told.values()]
    assert sorted(parts) == sorted(0 if none else 2 for none in nothing)


def test_who_is_told_the_same_shares_the_record() -> None:
    rounds = Rounds(INSIGHT)
    for number in (1, 2):
        exchange = rounds.strategy.exchange
        exchange.begin(number, range(2, 7))
        records = exchange.ask(range(2, 7))
        assert all(record is records[0] for record in records)
        assert ("guidance" in records[0]) == (number == 2)
        rounds.go()


def test_who_has_lost_its_state_is_told_again_and_nobody_else() -> None:
    rounds = Rounds(INSIGHT).go(3)
    assert isinstance(rounds.grid, ContextGrid)
    for key in list(rounds.grid.contexts[1].state):
        del rounds.grid.contexts[1].state[key]
    rounds.go()  # it says that it has nothing
    assert rounds.told == 5 * [[]]
    rounds.go()
    assert rounds.told == [[], NOW, [], [], []]
    assert rounds.payload_bytes == 5 * [0]  # its data are known all the same
    rounds.go()
    assert rounds.told == 5 * [[]]


def test_a_client_behind_a_new_node_is_asked_and_told_anew() -> None:
    rounds = Rounds(INSIGHT).go(3)
    exchange = rounds.strategy.exchange
    exchange.begin(4, [3, 4, 5, 6, 99])
    records = exchange.ask([3, 99])
    assert [one["insight"]["payloads"] for one in records] == ["", "prototypes"]
    assert ["guidance" in one for one in records] == [False, True]
    assert 2 not in exchange.incoming.client_of and 2 not in exchange.told


def test_who_has_other_data_is_asked_again() -> None:
    rounds = Rounds(INSIGHT).go(2)
    rounds.ask()
    rounds.receive()
    records = rounds.replies[3].content.metric_records
    records["insight"]["num_examples"] = records["metrics"]["num-examples"] = 40
    rounds.learn()
    before = rounds.strategy.exchange.meta_learner.guidance(0).parts["prototypes"]
    rounds.go()
    assert rounds.asked == [(), (), (), ("prototypes",), ()]
    rounds.go()  # and is 21 again: what came in between was of 21
    assert rounds.asked == 5 * [()]
    after = rounds.strategy.exchange.meta_learner.guidance(0).parts["prototypes"]
    assert after is before  # the same sums came back


def test_what_had_no_room_is_asked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    """Five clients' numbers of one round and three clients' payloads fit."""
    room = 5 * 16 * 8 + 3 * (PROTOTYPES + 32)
    rounds = Rounds([*INSIGHT, f"insight.memory_bytes={max(1024, room)}"]).go()
    memory = rounds.strategy.meta_learner.memory
    known = memory.collect("prototype_sum")[0].tolist()
    assert 0 < len(known) < 5
    rounds.go()
    assert rounds.asked == [() if c in known else ("prototypes",) for c in range(5)]
    said = [one.getMessage() for one in caplog.records if "memory_bytes" in one.getMessage()]
    assert len(said) == 1 and "has no room" in said[0]


def test_what_is_no_longer_advised_is_not_told_for_ever() -> None:
    rounds = Rounds(INSIGHT).go(3)
    rounds.strategy.meta_learner.policies.clear()  # as a policy may change its mind
    rounds.strategy.meta_learner.observe(3, [])
    rounds.go(2)
    assert rounds.told == 5 * [[]]
    assert [len(has) for has in rounds.strategy.exchange.told.values()] == 5 * [2]


@pytest.mark.parametrize(
    "words", [INSIGHT, GAUSSIANS, FEDAVG], ids=["insight", "gaussians", "fedavg"]
)
def test_a_cohort_tells_what_its_clients_would_tell_one_by_one(words: list[str]) -> None:
    def alone(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        return [answer([m], [c])[0] for m, c in zip(messages, contexts, strict=True)]

    some = [*words, "strategy.fraction_train=0.6"]
    together, apart = Rounds(some, columns=True), Rounds(some)
    apart.grid = ContextGrid(to_json(apart.config), 5, alone)
    for _ in range(4):
        mine, theirs = (one.go().strategy.insight_lines for one in (together, apart))
        assert (together.asked, together.told) == (apart.asked, apart.told)
        assert mine["payload_bytes"] == theirs["payload_bytes"]
        for name in mine.keys() - {"payload_bytes"}:
            assert mine[name] == pytest.approx(theirs[name], abs=1e-5), name


# ------------------------------------------------------------------------------ refusals


def test_columns_that_were_not_asked_for_are_refused() -> None:
    """As messages are: all five, who are answered together."""
    rounds = Rounds(INSIGHT, columns=True)
    told = []
    for _ in range(2):
        rounds.ask()
        rounds.receive()
        came = rounds.replies
        assert isinstance(came, Replies)
        told.append(came.parts[0].records.get("payload"))
        if len(told) == 2:
            assert told[0] is not None and told[1] is None
            came.parts[0].records["payload"] = told[0]
        rounds.learn()
    reason = "insight payload prototypes was not asked for"
    assert rounds.failures == dict.fromkeys(range(5), reason)
    assert rounds.strategy.new_insights == []


def test_a_payload_that_was_not_asked_for_is_refused() -> None:
    rounds = Rounds(INSIGHT).go()
    first = rounds.replies
    rounds.ask()
    rounds.receive()
    rounds.replies[2].content["payload"] = first[2].content["payload"]
    rounds.learn()
    assert rounds.failures == {2: "insight payload prototypes was not asked for"}
    assert [one.client_id for one in rounds.strategy.new_insights] == [0, 1, 3, 4]


def test_an_old_rounds_insight_is_refused() -> None:
    rounds = Rounds(INSIGHT).go(2)
    old = rounds.replies[2].content["insight"]
    rounds.ask()
    rounds.receive()
    rounds.replies[2].content["insight"] = old
    rounds.learn()
    assert rounds.failures == {2: "insight of round 2 in round 3"}


def test_an_unknown_version_is_refused() -> None:
    rounds = Rounds(INSIGHT)
    rounds.ask()
    rounds.receive()
    rounds.replies[2].content.metric_records["insight"]["schema_version"] = 3
    rounds.learn()
    assert rounds.failures == {2: "insight schema version 3 is unknown, expected 2"}


def test_nobody_takes_a_client_that_has_not_spoken_yet() -> None:
    rounds = Rounds([*INSIGHT, "strategy.fraction_train=0.8"])
    rounds.ask()
    rounds.receive()
    (absent,) = set(range(5)) - {get_insight(reply.content).client_id for reply in rounds.replies}
    rounds.learn()
    thief = rounds.replies[0]
    thief.content.metric_records["insight"]["client_id"] = absent
    with pytest.raises(ValueError, match=f"client id {absent} does not belong to node "):
        rounds.strategy.check_reply(thief)
    for _ in range(9):
        rounds.go()
        assert rounds.failures == {}
    assert rounds.strategy.exchange.incoming.client_of == {
        client + 2: client for client in range(5)
    }


def test_all_liars_of_a_round_are_named() -> None:
    rounds = Rounds(INSIGHT)
    rounds.ask()
    rounds.receive()
    lies = {"mean_grad": -1.0, "distance": 1e13, "validation_examples": -2}
    for client, (field, value) in enumerate(lies.items()):
        rounds.replies[client].content.metric_records["insight"][field] = value
    rounds.learn()
    reasons = [
        "insight mean_grad=-1.0: must not be negative",
        "insight distance=10000000000000.0: must be finite",
        "insight validation_examples=-2: must not be negative",
    ]
    assert rounds.failures == dict(enumerate(reasons))
    assert [one.client_id for one in rounds.strategy.new_insights] == [3, 4]


# --------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(
    "words", [INSIGHT, GAUSSIANS, FEDAVG], ids=["insight", "gaussians", "fedavg"]
)
@pytest.mark.parametrize("after", [1, 2, 3, 6])
def test_a_restored_exchange_sends_what_it_would_have_sent(words: list[str], after: int) -> None:
    some = "strategy.fraction_train=0.6"
    rounds = Rounds([*words, some, "insight.memory_rounds=2"]).go(after)
    other = rounds.built()
    arrays, values = strategy_state(rounds.strategy)
    restore_strategy(other, {name: array.copy() for name, array in arrays.items()}, values)
    for _ in range(3):
        strategies = rounds.strategy, other
        contents = []
        for strategy in strategies:
            exchange = strategy.exchange
            exchange.begin(rounds.round + 1, range(2, 7))
            contents.append([plain_content(one) for one in exchange.ask(range(2, 7))])
        assert contents[0] == contents[1]
        # Both see the same replies; the clients have answered the first one's messages.
        rounds.strategy = strategies[0]
        rounds.ask()
        rounds.receive()
        other.configure_train(rounds.round, ArrayRecord(), ConfigRecord(), rounds.grid)
        for strategy in strategies:
            rounds.strategy = strategy
            rounds.learn()
            assert rounds.failures == {}
        rounds.strategy = strategies[0]
        assert strategies[0].findings == other.findings
        assert strategies[0].exchange.lines() == other.exchange.lines()


def plain_content(records: Any) -> dict[str, Any]:
    """What a node is sent, to be compared."""
    found: dict[str, Any] = {}
    for key, record in records.items():
        values = record.items()
        if isinstance(record, ArrayRecord):
            found[key] = {name: array.numpy().tolist() for name, array in values}
        else:
            found[key] = dict(values)
    return found


def test_a_stale_part_is_known_to_be_stale() -> None:
    """A client that was told something else than what is advised by now is told anew."""
    rounds = Rounds(INSIGHT).go(3)
    exchange = rounds.strategy.exchange
    advice = exchange.meta_learner.guidance(0).parts
    exchange.told[4] = {**advice, "prototypes": advice["prototypes"] + 1}
    other = rounds.built()
    restore_strategy(other, *strategy_state(rounds.strategy))
    for one in (exchange, other.exchange):
        one.begin(4, range(2, 7))
        told = [sorted(content.get("guidance", ())) for content in one.ask(range(2, 7))]
        assert told == [[], [], ["prototypes"], [], []]


def test_lines_are_the_insights() -> None:
    rounds = Rounds([*INSIGHT, "insight.payloads=[scalars]"]).go()
    lines = rounds.strategy.insight_lines
    told = rounds.strategy.new_insights
    assert lines["payload_bytes"] == 5 * [{"prototypes": PROTOTYPES}]
    payload = rounds.strategy.exchange.payloads.by_name["prototypes"]
    assert payload.nbytes == PROTOTYPES
    for place, insight in enumerate(told):
        for name, value in insight.scalars().items():
            assert lines[name][place] == value
    rounds.go()
    assert rounds.strategy.insight_lines["payload_bytes"] == 5 * [{}]
    assert np.isfinite(rounds.strategy.insight_lines["uncertainty"]).all()
