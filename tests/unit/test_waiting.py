"""Deadlines and stragglers, by a clock that stands still unless the server sleeps."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.serverapp import strategy as flower
from slow_grid import FIRST, Seconds, SlowGrid, examples

from fedmoe.config import load_config
from fedmoe.errors import ConfigError, RunError
from fedmoe.messages import words
from fedmoe.messages.arrays import to_record
from fedmoe.profiling import Profile
from fedmoe.rounds import RoundLoop, RoundRecord
from fedmoe.standing import Standing
from fedmoe.strategies import FedAvg, StackedFedAvg
from fedmoe.waiting import Waiting, late_weight

CLIENTS = 4
LINE = tuple[int, str]


class Ran:
    """A run of some rounds, and what came of it."""

    def __init__(
        self,
        takes: Seconds,
        *,
        rounds: int,
        strategy: flower.Strategy | None = None,
        grid: Callable[[int, Seconds], SlowGrid] = SlowGrid,
        spoil: Callable[[int, int, RecordDict], RecordDict | Error] | None = None,
        evaluate_every: int = 99,
        **runtime: Any,
    ) -> None:
        self.grid = grid(CLIENTS, takes)
        if spoil is not None:
            self.grid.spoil = spoil
        settings = {"round_timeout": 60.0, "cut_off_grace": 2.0, "cut_off_share": 0.75, **runtime}
        base = load_config(model="linear")
        limits = replace(base.runtime, **settings)
        config = replace(base, rounds=rounds, runtime=limits, evaluate_every=evaluate_every)
        self.records: list[RoundRecord] = []
        self.ended: list[float] = []
        self.weights: list[float] = []
        self.loop = RoundLoop(
            config=config,
            strategy=strategy or FedAvg(seed=config.seed, fraction_evaluate=0.0),
            grid=self.grid,
            standing=Standing(to_record({"w": np.zeros(3, np.float32)})),
            client_of=self.grid.client_id,
            on_round=self._note,
            waiting=Waiting(
                self.grid, config.runtime, clock=self.grid.clock, sleep=self.grid.sleep
            ),
        )
        self.status = self.loop.run()

    def _note(self, record: RoundRecord) -> None:
        self.records.append(record)
        self.ended.append(self.grid.now)
        self.weights.append(float(self.loop.standing.arrays["w"].numpy()[0]))

    def lines(self, number: int) -> list[LINE]:
        """Client and status, of each client in the records of a round."""
        columns = self.records[number - 1].clients
        return list(zip(columns["client"], columns["status"], strict=True))

    def reason(self, number: int, client: int) -> str | None:
        columns = self.records[number - 1].clients
        return cast(str | None, columns["reason"][columns["client"].index(client)])

    def asked(self, number: int, training: bool = True) -> list[int]:
        return [client for r, client, t in self.grid.asked if (r, t) == (number, training)]


def average(contributions: dict[int, float], weights: dict[int, float]) -> float:
    total = sum(weights.values())
    return sum(contributions[c] * weights[c] for c in contributions) / total


def usual(*clients: int, start: float = 0.0) -> float:
    """Where a round's weights end that began at `start` and have these clients."""
    return average({c: start + c + 1 for c in clients}, {c: examples(c) for c in clients})


def client_3(seconds: float | None, rounds: tuple[int, ...] = (1,)) -> Seconds:
    """All take a second; client 3 longer in some rounds."""
    return lambda client, number, training: seconds if client == 3 and number in rounds else 1.0


def test_all_that_come_in_time_are_waited_for() -> None:
    ran = Ran(client_3(40.0), rounds=2)
    assert 40.0 <= ran.ended[0] <= 40.5
    assert 1.0 <= ran.ended[1] - ran.ended[0] <= 1.2
    assert ran.weights[0] == pytest.approx(usual(0, 1, 2, 3))
    assert ran.weights[1] == pytest.approx(usual(0, 1, 2, 3, start=ran.weights[0]))
    assert [len(ran.lines(n)) for n in (1, 2)] == [4, 4]


def test_a_client_that_hangs_costs_one_timeout_and_is_asked_again_later() -> None:
    ran = Ran(client_3(None), rounds=4, late_rounds=2)
    assert ran.ended[0] == pytest.approx(60.0)
    assert ran.ended[2] - ran.ended[0] < 3
    assert ran.lines(1)[3] == (3, "failed")
    assert ran.reason(1, 3) == "no reply before the deadline"
    assert [ran.asked(n) for n in (1, 2, 3, 4)] == [
        [0, 1, 2, 3],
        [0, 1, 2],
        [0, 1, 2],
        [0, 1, 2, 3],
    ]
    assert ran.weights[1] == pytest.approx(usual(0, 1, 2, start=ran.weights[0]))
    assert ran.lines(4)[3] == (3, "ok")
    assert not ran.loop.standing.strikes  # to be slow is no offence


def test_a_late_reply_of_a_client_that_is_waited_for_is_dropped() -> None:
    ran = Ran(client_3(3.5), rounds=3, round_timeout=3.0)
    assert ran.ended[0] == pytest.approx(3.0)
    assert [ran.asked(n) for n in (1, 2, 3)] == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3]]
    assert ran.weights[1] == pytest.approx(usual(0, 1, 2, start=ran.weights[0]))
    assert ran.lines(2) == [(0, "ok"), (1, "ok"), (2, "ok")]


@pytest.mark.parametrize("stragglers", ["cut_off", "late"])
def test_a_round_closes_a_grace_period_after_enough_have_come(stragglers: str) -> None:
    ran = Ran(client_3(30.0), rounds=1, stragglers=stragglers)
    assert 3.0 <= ran.ended[0] <= 3.2  # three of four after one second, and two of grace
    assert ran.reason(1, 3) == "no reply when enough others were there"
    assert ran.weights[0] == pytest.approx(usual(0, 1, 2))


def test_who_comes_within_the_grace_period_is_in() -> None:
    ran = Ran(client_3(2.5), rounds=1, stragglers="cut_off")
    assert 2.5 <= ran.ended[0] <= 2.8
    assert ran.lines(1)[3] == (3, "ok")


@pytest.mark.parametrize(("least", "share", "end"), [(4, 0.5, 30.0), (1, 1.0, 30.0), (2, 0.5, 3.0)])
def test_neither_fewer_than_the_quorum_nor_than_the_share_are_enough(
    least: int, share: float, end: float
) -> None:
    ran = Ran(
        client_3(30.0), rounds=1, stragglers="cut_off", min_replies=least, cut_off_share=share
    )
    assert end <= ran.ended[0] <= end + 0.5


def test_cut_off_replies_are_dropped_and_their_clients_asked_again() -> None:
    ran = Ran(client_3(3.5), rounds=3, stragglers="cut_off")
    assert [ran.asked(n) for n in (1, 2, 3)] == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3]]
    assert ran.weights[1] == pytest.approx(usual(0, 1, 2, start=ran.weights[0]))
    assert ran.weights[2] == pytest.approx(usual(0, 1, 2, 3, start=ran.weights[1]))


@pytest.mark.parametrize(("exponent", "weight"), [(0.5, 28), (1.0, 20), (0.0, 40), (9.0, 1)])
def test_late_replies_count_in_the_next_round_by_their_weight(exponent: float, weight: int) -> None:
    ran = Ran(client_3(3.5), rounds=3, stragglers="late", late_exponent=exponent)
    assert examples(3) == 40
    first = usual(0, 1, 2)
    assert ran.weights[0] == pytest.approx(first)
    came = {0: first + 1, 1: first + 2, 2: first + 3, 3: 0.0 + 4}  # 3 began where round 1 did
    second = average(came, {0: 10, 1: 20, 2: 30, 3: weight})
    assert ran.weights[1] == pytest.approx(second)
    assert ran.weights[2] == pytest.approx(usual(0, 1, 2, 3, start=second))
    assert ran.lines(2) == [(0, "ok"), (1, "ok"), (2, "ok"), (3, "late")]
    assert ran.records[1].clients["bytes_down"][3] == 0  # it was sent a round before
    assert ran.records[1].metrics["train"]["clients"] == 4
    assert ran.records[1].metrics["train"]["failures"] == 0


def test_late_by_two_rounds() -> None:
    ran = Ran(client_3(4.5), rounds=3, stragglers="late", late_exponent=1.0)
    assert ran.lines(2) == [(0, "ok"), (1, "ok"), (2, "ok")]
    second = ran.weights[1]
    came = {0: second + 1, 1: second + 2, 2: second + 3, 3: 4.0}
    assert ran.weights[2] == pytest.approx(average(came, {0: 10, 1: 20, 2: 30, 3: 40 / 3 // 1}))
    assert ran.lines(3)[3] == (3, "late")


def test_too_late_is_given_up() -> None:
    ran = Ran(client_3(5.5), rounds=5, stragglers="late", late_rounds=2)
    assert [ran.asked(n) for n in (2, 3, 4)] == [[0, 1, 2], [0, 1, 2], [0, 1, 2, 3]]
    assert all("late" not in dict(ran.lines(n)).values() for n in range(1, 6))


def test_what_comes_during_an_evaluation_is_merged_in_the_next_training() -> None:
    strategy = FedAvg(seed=0)
    ran = Ran(client_3(3.5), rounds=3, stragglers="late", evaluate_every=1, strategy=strategy)
    assert ran.asked(1, training=False) == [0, 1, 2]
    assert ran.records[0].metrics["missing"] == 1
    assert ran.asked(2) == [0, 1, 2]  # a client counts once in a round
    assert ran.lines(2)[3] == (3, "late")
    assert ran.asked(2, training=False) == ran.asked(3) == [0, 1, 2, 3]


def test_a_late_evaluation_is_of_no_use() -> None:
    slow: Seconds = lambda c, number, training: 1.0 if training or c < 3 or number > 1 else 3.5  # noqa: E731
    ran = Ran(slow, rounds=2, stragglers="late", evaluate_every=1, strategy=FedAvg(seed=0))
    assert ran.asked(2) == [0, 1, 2]
    assert [client for client, _ in ran.lines(2)] == [0, 1, 2]


def test_errors_are_not_waited_for_and_are_not_enough() -> None:
    def spoil(client: int, number: int, content: RecordDict) -> RecordDict | Error:
        return Error(2, "it raised") if client < 2 else content

    # Of the two that have not failed, three quarters are two.
    ran = Ran(client_3(30.0), rounds=1, stragglers="cut_off", spoil=spoil)
    assert 30.0 <= ran.ended[0] <= 30.5
    assert ran.reason(1, 0) == "it raised"
    assert not ran.loop.standing.strikes


def test_the_share_is_of_those_that_have_not_failed() -> None:
    def spoil(client: int, number: int, content: RecordDict) -> RecordDict | Error:
        return Error(2, "it raised") if client < 2 else content

    ran = Ran(client_3(30.0), rounds=1, stragglers="cut_off", cut_off_share=0.5, spoil=spoil)
    assert 3.0 <= ran.ended[0] <= 3.2
    assert ran.lines(1) == [(0, "failed"), (1, "failed"), (2, "ok"), (3, "failed")]


def test_a_late_reply_passes_the_guard_too() -> None:
    def spoil(client: int, number: int, content: RecordDict) -> RecordDict:
        if client == 3:
            content[words.ARRAYS] = to_record({"w": np.full(3, math.nan, np.float32)})
        return content

    ran = Ran(client_3(3.5), rounds=2, stragglers="late", spoil=spoil)
    assert ran.lines(2)[3] == (3, "failed")
    assert ran.reason(2, 3) == "arrays/w: not finite"
    assert ran.loop.standing.strikes == {3: 1}
    assert ran.weights[1] == pytest.approx(usual(0, 1, 2, start=ran.weights[0]))


def test_where_all_are_busy_all_are_asked() -> None:
    """Else a strategy would have nobody to ask, which ends a run."""
    hangs: Seconds = lambda client, number, training: None if number == 1 else 1.0  # noqa: E731
    ran = Ran(hangs, rounds=2)
    assert ran.asked(2) == [0, 1, 2, 3]
    assert [record.metrics["train"]["void"] for record in ran.records] == [True, False]


def test_who_has_struck_out_is_not_asked_even_then() -> None:
    def spoil(client: int, number: int, content: RecordDict) -> RecordDict:
        if client == 3:
            del content[words.ARRAYS]
        return content

    hangs: Seconds = lambda c, number, training: None if number == 1 and c < 3 else 1.0  # noqa: E731
    ran = Ran(hangs, rounds=2, spoil=spoil, max_strikes=1)
    assert ran.asked(2) == [0, 1, 2]


def test_a_strategy_that_wants_all_clients_is_not_left_waiting() -> None:
    """Flower's own wait for ever for `min_available_nodes`."""
    strategy = flower.FedAvg(min_available_nodes=CLIENTS, fraction_evaluate=0.0)
    ran = Ran(client_3(None), rounds=2, strategy=strategy, round_timeout=5.0)
    assert sorted(ran.asked(2)) == [0, 1, 2, 3]
    ran = Ran(client_3(None), rounds=2, strategy=flower.FedAvg(fraction_evaluate=0.0))
    assert sorted(ran.asked(2)) == [0, 1, 2]


class FromServer(SlowGrid):
    """Errors come in the server's name, as Flower's HTTP grid makes them."""

    def pull_messages(self, message_ids: Any) -> list[Message]:
        replies = super().pull_messages(message_ids)
        for reply in replies:
            if reply.has_error():
                reply.metadata.__dict__["_src_node_id"] = 1
        return replies


def test_an_error_made_in_a_nodes_place_is_that_nodes() -> None:
    def spoil(client: int, number: int, content: RecordDict) -> RecordDict | Error:
        return Error(3, "unavailable") if client == 2 else content

    ran = Ran(client_3(1.0), rounds=1, spoil=spoil, grid=FromServer)
    assert ran.reason(1, 2) == "unavailable"
    assert ran.ended[0] < 2


class Unsendable(SlowGrid):
    """A grid that cannot send some messages, or none."""

    def push_messages(self, messages: Any) -> list[Any]:
        sent = super().push_messages(messages)
        return [] if len(self.asked) > CLIENTS else [None, *sent[1:]]


def test_messages_that_cannot_be_sent_are_failures() -> None:
    ran = Ran(client_3(1.0), rounds=2, grid=Unsendable)
    assert ran.lines(1) == [(0, "failed"), (1, "ok"), (2, "ok"), (3, "ok")]
    assert ran.ended[0] < 2  # nobody waits for what was never sent
    assert ran.records[1].metrics["train"]["void"]
    assert ran.weights[1] == ran.weights[0]


def test_looks_are_few_and_never_far_apart() -> None:
    """Twice a second for clients that take long; within a tenth for those that are quick."""
    ran = Ran(client_3(1000.0), rounds=1, round_timeout=1000.0)
    assert 2000 <= ran.grid.pulls <= 2100
    quick = Ran(lambda *_: 0.1, rounds=1)
    assert 0.1 <= quick.ended[0] <= 0.121


class Checks(StackedFedAvg):
    def check_reply(self, reply: Message) -> None:
        pass


def test_strategies_that_look_at_each_reply_take_no_late_ones() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.stragglers=late: .* use cut_off or wait"):
        Ran(client_3(1.0), rounds=1, stragglers="late", strategy=Checks())
    assert Ran(client_3(1.0), rounds=1, stragglers="cut_off", strategy=Checks()).status


def test_only_void_rounds_end_in_an_error() -> None:
    with pytest.raises(RunError, match="every round was void"):
        Ran(lambda *_: None, rounds=2, round_timeout=1.0)


@pytest.mark.parametrize(
    ("rounds", "exponent", "weight"),
    [(0, 0.5, 1.0), (1, 0.5, 0.5**0.5), (3, 2.0, 1 / 16), (5, 0.0, 1.0)],
)
def test_weights_of_late_replies(rounds: int, exponent: float, weight: float) -> None:
    assert late_weight(rounds, exponent) == pytest.approx(weight)


class Forging(SlowGrid):
    """Client 3 answers in client 1's name."""

    def pull_messages(self, message_ids: Any) -> list[Message]:
        replies = super().pull_messages(message_ids)
        for reply in replies:
            if reply.metadata.src_node_id == FIRST + 3:
                reply.metadata.__dict__["_src_node_id"] = FIRST + 1
        return replies


def test_a_reply_counts_against_whom_it_answers_for() -> None:
    ran = Ran(client_3(1.0), rounds=1, grid=Forging)
    assert ran.lines(1) == [(0, "ok"), (1, "ok"), (2, "ok"), (3, "failed")]
    assert ran.reason(1, 3) == "came in another node's name"
    assert ran.loop.standing.strikes == {3: 1}
    assert ran.weights[0] == pytest.approx(usual(0, 1, 2))


def test_a_profile_counts_the_time_waited_for_training_and_for_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = SlowGrid(CLIENTS, usual)
    monkeypatch.setattr(time, "perf_counter", grid.clock)
    waiting = Waiting(grid, load_config().runtime, clock=grid.clock, sleep=grid.sleep)
    nodes = grid.get_node_ids()
    content = RecordDict(
        {
            words.ARRAYS: to_record({"w": np.zeros(3, np.float32)}),
            words.CONFIG: ConfigRecord({words.SERVER_ROUND: 1}),
        }
    )
    with Profile().at_work() as profile:
        for training in (True, False):
            kind = MessageType.TRAIN if training else MessageType.EVALUATE
            before = grid.clock()
            came = waiting.exchange(
                [Message(content, node, kind) for node in nodes], 1, training=training
            )
            assert len(list(came.replies)) == CLIENTS
            name = "train" if training else "evaluate"
            assert profile.take() == {name: pytest.approx(grid.clock() - before)}
            assert grid.clock() > before
