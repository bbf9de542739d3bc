"""Evaluation that rides along with training: what is asked when, and what becomes of failures."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from slow_grid import FIRST, Seconds, SlowGrid

from fedmoe.config import load_config
from fedmoe.messages import words
from fedmoe.messages.arrays import to_record
from fedmoe.messages.riding import evaluation_in, joined
from fedmoe.messages.seams import ensure_task_identity
from fedmoe.riding import fits, permits
from fedmoe.rounds import RoundLoop, RoundRecord
from fedmoe.schema import LanConfig
from fedmoe.standing import Standing
from fedmoe.strategies import FedAvg, FedMoE, Insights, StackedFedAvg, with_insights
from fedmoe.waiting import Waiting

CLIENTS = 4
Spoil = Callable[[int, int, RecordDict], RecordDict | Error | None]
AT_ONCE: Seconds = lambda client, number, training: 1.0  # noqa: E731


class RidingGrid(SlowGrid):
    """Slow clients that score the model, alone or before they train; their score is its weight.

    Attributes:
        scored: (round, client) of each evaluation, and whether it rode along.
        spoil_score: as `spoil`, of evaluations; `None` leaves the half out.
        spoil_whole: changes a reply that is about to be sent, given client and round.
    """

    def __init__(self, clients: int, takes: Seconds) -> None:
        super().__init__(clients, takes)
        self.scored: list[tuple[int, int, bool]] = []
        self.spoil_score: Spoil = lambda client, number, content: content
        self.spoil_whole: Spoil = lambda client, number, content: content

    def _answer(
        self, message: Message, client: int, number: int, training: bool
    ) -> RecordDict | Error:
        asked = evaluation_in(message.content) if training else message.content
        trained = super()._answer(message, client, number, training)
        if asked is None:
            return trained
        score = self._score(asked, client, riding=training)
        if not training:
            return score or Error(2, "nothing")
        if score is None:
            return trained
        whole = joined(*(Message(half, reply_to=message) for half in (trained, score)))
        if whole.has_error():
            return whole.error
        return self.spoil_whole(client, number, whole.content) or Error(2, "nothing")

    def _score(self, asked: RecordDict, client: int, riding: bool) -> RecordDict | Error | None:
        number = cast(int, asked.config_records[words.CONFIG][words.SERVER_ROUND])
        self.scored.append((number, client, riding))
        weight = float(asked.array_records[words.ARRAYS]["w"].numpy()[0])
        told = {"num-examples": 1, "test-num-examples": 1, "validation-num-examples": 1}
        scores = {"test-global-mse": weight, "validation-global-mse": weight}
        content = RecordDict({words.METRICS: MetricRecord({**told, **scores})})
        return self.spoil_score(client, number, content)


class Ran:
    """Some rounds of a deployment, and what came of them."""

    def __init__(
        self,
        takes: Seconds = AT_ONCE,
        *,
        rounds: int,
        strategy: flower.Strategy | None = None,
        spoil: Spoil | None = None,
        spoil_score: Spoil | None = None,
        spoil_whole: Spoil | None = None,
        start: int = 0,
        stopping: dict[str, Any] | None = None,
        evaluate_every: int = 1,
        **runtime: Any,
    ) -> None:
        self.grid = RidingGrid(CLIENTS, takes)
        self.grid.spoil = cast(Any, spoil) or self.grid.spoil
        self.grid.spoil_score = spoil_score or self.grid.spoil_score
        self.grid.spoil_whole = spoil_whole or self.grid.spoil_whole
        base = load_config(model="linear", runtime="lan", stopping=stopping or {})
        settings = {"round_timeout": 60.0, "cut_off_grace": 2.0, "cut_off_share": 0.75, **runtime}
        limits = replace(base.runtime, **settings)
        config = replace(base, rounds=rounds, runtime=limits, evaluate_every=evaluate_every)
        self.records: list[RoundRecord] = []
        self.weights: list[float] = []
        self.strikes: list[dict[int, int]] = []
        standing = Standing(to_record({"w": np.zeros(3, np.float32)}), round=start)
        self.loop = RoundLoop(
            config=config,
            strategy=strategy or FedAvg(seed=config.seed),
            grid=self.grid,
            standing=standing,
            client_of=self.grid.client_id,
            on_round=self._note,
            waiting=Waiting(
                self.grid, config.runtime, clock=self.grid.clock, sleep=self.grid.sleep
            ),
        )
        self.status = self.loop.run()

    def _note(self, record: RoundRecord) -> None:
        self.records.append(record)
        self.weights.append(float(self.loop.standing.arrays["w"].numpy()[0]))
        self.strikes.append(dict(self.loop.standing.strikes))

    @property
    def phases(self) -> list[tuple[int, bool]]:
        """Round and kind of what was asked, in order."""
        return list(dict.fromkeys((number, training) for number, _, training in self.grid.asked))

    @property
    def rode(self) -> list[int]:
        return sorted({number for number, _, riding in self.grid.scored if riding})

    def column(self, name: str) -> list[Any]:
        return [record.metrics[name] for record in self.records]

    @property
    def scores(self) -> list[float | None]:
        """The mean weight that was scored in each round."""
        return [one and one["global"]["mse"]["mean"] for one in self.column("test")]

    def lines(self, number: int) -> list[tuple[int, str, str | None]]:
        columns = self.records[number - 1].clients
        return list(zip(columns["client"], columns["status"], columns["reason"], strict=True))


def only(chosen: int, at: int, made: Callable[[RecordDict], RecordDict | Error | None]) -> Spoil:
    """Spoils one client's answer in one round."""
    return lambda client, number, content: (
        made(content) if (client, number) == (chosen, at) else content
    )


# ------------------------------------------------------------------------------ when it is asked


def test_a_round_is_one_exchange_and_the_last_has_an_evaluation_of_its_own() -> None:
    ran = Ran(rounds=3)
    assert ran.phases == [(1, True), (2, True), (3, True), (3, False)]
    assert ran.rode == [1, 2]
    assert ran.scores == ran.weights  # of the model of its own round, not of the one before
    assert ran.column("missing") == [0, 0, 0]
    apart = Ran(rounds=3, evaluate_with_training=False)
    assert apart.phases == [(number, kind) for number in (1, 2, 3) for kind in (True, False)]
    assert (apart.weights, apart.scores) == (ran.weights, ran.scores)


def test_every_second_round_is_evaluated() -> None:
    ran = Ran(rounds=5, evaluate_every=2)
    assert ran.phases == [(n, True) for n in range(1, 6)] + [(5, False)]
    assert ran.rode == [2, 4]
    assert ran.scores == [None, ran.weights[1], None, ran.weights[3], ran.weights[4]]


def test_a_run_that_goes_on_asks_once_more_for_what_it_knows() -> None:
    """Clients are back in their state after round 2, and will be asked what they did then."""
    ran = Ran(rounds=4, start=2)
    assert ran.phases == [(3, True), (4, True), (4, False)]
    assert ran.rode == [2, 3]
    assert [record.round for record in ran.records] == [3, 4]
    assert Ran(rounds=4, start=3, evaluate_every=2).rode == []
    assert Ran(rounds=4, start=2, evaluate_with_training=False).rode == []


class Some(FedAvg):
    """Trains others than it evaluates."""

    evaluation_rides = True

    def sample(self, server_round: int, grid: Grid) -> list[int]:
        return [FIRST + (server_round + k) % CLIENTS for k in range(CLIENTS - 1)]


class Moved(FedAvg):
    """Trains another model than it evaluates in round 2, and a copy of the same in round 3."""

    evaluation_rides = True

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        moved = {name: array.numpy() + (server_round == 2) for name, array in arrays.items()}
        return super().configure_train(server_round, to_record(moved), config, grid)


class Heir(FedAvg):
    """Anybody's."""


@pytest.mark.parametrize(
    ("strategy", "rode"),
    [(Some(), []), (Moved(), [2, 3]), (Heir(), []), (flower.FedAvg(), [1, 2, 3])],
)
def test_what_does_not_fit_is_a_phase_of_its_own(
    strategy: flower.Strategy, rode: list[int]
) -> None:
    ran = Ran(rounds=4, strategy=strategy)
    assert ran.rode == rode
    own = {(n, False) for n in range(1, 5) if n not in rode}
    assert set(ran.phases) == {(n, True) for n in range(1, 5)} | own
    assert (
        sorted(number for number, _, _ in ran.grid.scored) == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    )
    assert ran.scores == ran.weights


def test_who_permits_it() -> None:
    lan = load_config(model="linear", runtime="lan").runtime
    assert isinstance(lan, LanConfig)
    assert permits(lan, FedAvg()) and permits(lan, flower.FedAdam())
    assert not permits(replace(lan, evaluate_with_training=False), FedAvg())
    assert not permits(load_config(model="linear").runtime, FedAvg())
    assert not permits(lan, Heir()) and not permits(lan, StackedFedAvg())
    assert not permits(lan, type("Own", (flower.FedAvg,), {})())
    assert not permits(lan, flower.FedXgbBagging())
    assert with_insights(FedMoE).evaluation_rides and not with_insights(Heir).evaluation_rides
    assert not Insights.evaluation_rides


def sent(kind: str, node: int = 1, **records: Any) -> Message:
    ensure_task_identity()
    config = ConfigRecord({words.SERVER_ROUND: 1})
    return Message(RecordDict({words.CONFIG: config, **records}), node, kind)


def arrays(value: float = 1.0, name: str = "w") -> ArrayRecord:
    return to_record({name: np.full(2, value, np.float32)})


def test_what_fits() -> None:
    train, evaluate = MessageType.TRAIN, MessageType.EVALUATE
    same = arrays()

    def fit(trained: dict[str, Any], evaluated: dict[str, Any], node: int = 1) -> bool:
        return fits([sent(evaluate, **evaluated)], [sent(train, node, **trained)])

    assert fit({}, {}) and fit({"arrays": same}, {"arrays": same})
    assert fit({"arrays": same, "guidance": arrays()}, {"arrays": same})
    assert fit({"arrays": arrays()}, {"arrays": arrays()})
    assert not fit({}, {}, node=2)
    assert not fits([sent(evaluate)], [sent(train), sent(train, 2)])
    assert not fit({"arrays": arrays()}, {"arrays": arrays(2.0)})
    assert not fit({"arrays": arrays()}, {"arrays": arrays(name="v")})
    wide = to_record({"w": np.full(2, 1.0, np.float64)})
    assert not fit({"arrays": arrays()}, {"arrays": wide})
    assert not fit({"arrays": same}, {}) and not fit({}, {"arrays": same})
    index = to_record({"index": np.arange(1)})
    assert not fit({"arrays": same, "experts": index}, {"arrays": same})
    assert not fit({"arrays": same}, {"arrays": same, "guidance": arrays()})
    assert not fit({}, {"config": MetricRecord({"a": 1})})


# ------------------------------------------------------------------------------- when it must end


@pytest.mark.parametrize("along", [True, False])
def test_what_was_trained_after_the_last_round_is_thrown_away(along: bool) -> None:
    ran = Ran(rounds=9, stopping={"patience": 2}, evaluate_with_training=along)  # mse grows
    assert ran.status == "stopped: no improvement in 2 evaluations"
    assert ran.phases[-1] == ((4, True) if along else (3, False))
    plain = Ran(rounds=3, evaluate_with_training=False)
    assert ran.weights == plain.weights
    assert float(ran.loop.standing.arrays["w"].numpy()[0]) == plain.weights[-1]
    assert len(ran.records) == ran.loop.standing.round == ran.loop.standing.valid_rounds == 3
    if along:
        one, other = ran.column("bytes"), plain.column("bytes")
        # Three exchanges, and the reply to a fourth.
        assert one[2]["up"] - other[2]["up"] == one[0]["up"] - _scores_up(ran)
        assert ran.loop.standing.bytes_down == sum(line["down"] for line in one)


def _scores_up(ran: Ran) -> int:
    """Bytes of one round's scores."""
    record = ran.records[0]
    return int(record.metrics["bytes"]["up"] - sum(record.clients["bytes_up"]))


# ---------------------------------------------------------------------------------------- failures


def refused(content: RecordDict) -> RecordDict:
    cast(MetricRecord, content[words.METRICS])[words.NUM_EXAMPLES] = -1
    return content


REFUSED = "num-examples=-1: must be a whole number "


def test_a_client_that_cannot_evaluate_trains_all_the_same() -> None:
    ran = Ran(rounds=3, spoil_score=only(3, 1, lambda _: Error(2, "no test data")))
    assert ran.rode == [1, 2]
    assert ran.column("missing") == [1, 0, 0]
    assert ran.lines(2) == [(client, "ok", None) for client in range(4)]
    assert ran.weights == Ran(rounds=3).weights
    assert not ran.loop.standing.strikes


def test_a_client_that_cannot_train_is_scored_all_the_same() -> None:
    ran = Ran(rounds=3, spoil=only(3, 2, lambda _: Error(2, "it raised")))
    assert ran.column("missing") == [0, 0, 0]
    assert ran.lines(2)[3] == (3, "failed", "it raised")
    assert ran.column("train")[1]["clients"] == 3
    assert (
        ran.weights
        == Ran(
            rounds=3, spoil=only(3, 2, lambda _: Error(2, "")), evaluate_with_training=False
        ).weights
    )


def test_a_client_that_can_do_neither_is_missing_from_both() -> None:
    down = only(3, 2, lambda _: Error(2, "down"))
    ran = Ran(rounds=3, spoil=down, spoil_score=only(3, 1, lambda _: Error(2, "down")))
    assert ran.column("missing") == [1, 0, 0]
    assert ran.lines(2)[3] == (3, "failed", "down")
    assert not ran.loop.standing.strikes


def test_each_half_is_refused_for_itself() -> None:
    scored = Ran(rounds=3, spoil_score=only(3, 1, refused))
    assert scored.column("missing") == [1, 0, 0]
    assert scored.lines(2)[3] == (3, "ok", None)
    assert scored.strikes == [{3: 1}] * 3
    trained = Ran(rounds=3, spoil=only(3, 2, refused))
    assert trained.column("missing") == [0, 0, 0]
    assert trained.lines(2)[3] == (3, "failed", f"{REFUSED}1..10000000")
    assert trained.strikes == [{}, {3: 1}, {3: 1}]  # the checkpoint of round 1 knows nothing of it


def test_one_message_is_worth_one_strike() -> None:
    both = Ran(rounds=3, spoil=only(3, 2, refused), spoil_score=only(3, 1, refused))
    assert both.column("missing") == [1, 0, 0]
    assert both.lines(2)[3] == (3, "failed", f"{REFUSED}1..10000000")
    assert both.strikes == [{3: 1}] * 3


def test_who_strikes_out_by_its_scores_is_not_asked_any_more() -> None:
    ran = Ran(rounds=4, max_strikes=1, spoil_score=only(3, 1, refused))
    assert ran.lines(2)[3] == (3, "ok", None)  # it had been asked before
    assert [client for client, _, _ in ran.lines(3)] == [0, 1, 2]
    assert ran.column("missing") == [1, 1, 1, 1]


def test_an_evaluation_that_is_left_out_is_refused() -> None:
    ran = Ran(rounds=3, spoil_score=only(3, 1, lambda _: None))
    assert ran.column("missing") == [1, 0, 0]
    assert ran.lines(2)[3] == (3, "ok", None)
    assert ran.strikes[0] == {3: 1}


def test_nonsense_about_failures_fails_its_sender_alone() -> None:
    def odd(content: RecordDict) -> RecordDict:
        content[words.FAILED] = ConfigRecord({MessageType.TRAIN: 7, MessageType.EVALUATE: "so"})
        return content

    ran = Ran(rounds=3, spoil_whole=only(3, 2, odd))
    assert ran.column("missing") == [1, 0, 0]
    assert ran.lines(2)[3] == (3, "ok", None)
    ran = Ran(rounds=3, spoil_whole=only(3, 2, lambda _: RecordDict({"junk": arrays()})))
    assert ran.lines(2)[3] == (3, "failed", "the reply has no metrics")
    assert ran.strikes == [{3: 1}] * 3


def test_a_round_that_is_void_is_evaluated() -> None:
    ran = Ran(rounds=3, spoil=lambda c, n, x: Error(2, "down") if n == 2 else x, min_replies=2)
    assert [line["void"] for line in ran.column("train")] == [False, True, False]
    assert ran.rode == [1, 2]
    assert ran.scores == ran.weights
    assert ran.column("missing") == [0, 0, 0]


# -------------------------------------------------------------------------------------- stragglers


def client_3(seconds: float | None, *rounds: int) -> Seconds:
    return lambda client, number, training: seconds if client == 3 and number in rounds else 1.0


def test_who_is_silent_is_missing_from_the_scores_too() -> None:
    ran = Ran(client_3(None, 2), rounds=4, late_rounds=1)
    assert ran.column("missing") == [1, 1, 1, 0]
    assert ran.lines(2)[3] == (3, "failed", "no reply before the deadline")
    assert [client for client, _, _ in ran.lines(3)] == [0, 1, 2]  # it is busy
    assert ran.rode == [1, 2]  # in round 4 it is asked again, to train
    assert not ran.loop.standing.strikes


def test_who_is_cut_off_is_missing_from_the_scores_too(caplog: pytest.LogCaptureFixture) -> None:
    ran = Ran(client_3(3.5, 2), rounds=4, stragglers="cut_off")
    assert ran.column("missing") == [1, 1, 0, 0]
    reason = "no reply when enough others were there"
    assert ran.lines(2)[3] == (3, "failed", reason)
    assert f"round 1, client 3 failed to evaluate: {reason}" in caplog.messages


def test_scores_that_come_with_late_training_are_of_no_use() -> None:
    ran = Ran(client_3(3.5, 2), rounds=4, stragglers="late")
    apart = Ran(client_3(3.5, 2), rounds=4, stragglers="late", evaluate_with_training=False)
    assert ran.lines(3)[3] == (3, "late", None)
    assert ran.records[2].clients["bytes_up"][3] == apart.records[2].clients["bytes_up"][3]
    assert ran.weights == apart.weights
    assert ran.column("missing") == [1, 1, 0, 0]
    assert [number for number, client, _ in ran.grid.scored if client == 3] == [1, 3, 4]


def test_late_training_that_failed_is_no_reply() -> None:
    ran = Ran(
        client_3(3.5, 2), rounds=4, stragglers="late", spoil=only(3, 2, lambda _: Error(2, "x"))
    )
    assert [client for client, _, _ in ran.lines(3)] == [0, 1, 2]


def test_training_that_failed_is_not_enough_to_close_a_round() -> None:
    slow: Seconds = lambda client, number, training: 30.0 if client > 1 and number == 2 else 1.0  # noqa: E731
    spoil: Spoil = lambda client, number, x: Error(2, "x") if client == 0 and number == 2 else x  # noqa: E731
    ran = Ran(slow, rounds=3, stragglers="cut_off", spoil=spoil, cut_off_share=0.3, min_replies=2)
    assert not ran.column("train")[1]["void"]
