"""What a client answers, without a network."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedmoe.config import load_config, to_json
from fedmoe.errors import ConfigError, DataError, RunError
from fedmoe.lan.desk import Desk, cut_off, farewell, own_number
from fedmoe.lan.packing import is_packed, pack, unpack
from fedmoe.messages import words
from fedmoe.messages.arrays import to_record
from fedmoe.messages.riding import has_trained
from fedmoe.messages.seams import ensure_task_identity, set_message_id
from fedmoe.models.router_metrics import TOTALS

WORDS = [
    "data=digits", "partition=iid", "partition.num_clients=2", "model=linear", "training=sgd",
    "training.epochs=1", "strategy=local", "tracking.checkpoint_every=2",
]  # fmt: skip
RUN = {"config": to_json(load_config(WORDS)), "federation": "abc"}


def ask(kind: str, number: int, *, packed: bool = True) -> Message:
    ensure_task_identity()
    content = RecordDict({words.CONFIG: ConfigRecord({words.SERVER_ROUND: number})})
    message = Message(pack(content) if packed else content, 9, kind)
    set_message_id(message, "m")
    return message


def loss(desk: Desk, number: int) -> float:
    reply = desk.answer(ask(MessageType.TRAIN, number))
    return float(unpack(reply.content)[words.METRICS][words.LOSS])  # type: ignore[arg-type]


def test_a_desk_goes_on_where_another_left_off(tmp_path: Path) -> None:
    whole = Desk(RUN, 1, 0, tmp_path / "a")
    expected = [loss(whole, number) for number in range(1, 6)]
    assert expected == sorted(expected, reverse=True)
    first = Desk(RUN, 1, 0, tmp_path / "b")
    assert [loss(first, number) for number in (1, 2, 3)] == expected[:3]
    again = Desk(RUN, 2, 0, tmp_path / "b")
    assert [loss(again, number) for number in (4, 5)] == expected[3:]


def test_a_round_that_is_asked_for_again_is_answered_alike(tmp_path: Path) -> None:
    desk = Desk(RUN, 1, 0, tmp_path)
    expected = [loss(desk, number) for number in range(1, 6)]
    assert loss(desk, 5) == expected[4]
    assert [loss(desk, number) for number in (3, 4, 5)] == expected[2:]  # back to a checkpoint


def test_what_comes_packed_goes_packed(tmp_path: Path) -> None:
    desk = Desk(RUN, 1, 0, tmp_path)
    for packed in (True, False):
        reply = desk.answer(ask(MessageType.TRAIN, 1, packed=packed))
        assert is_packed(reply.content) == packed
        unpack(reply.content)


def test_a_query_is_told_who_this_is_and_what_it_has(tmp_path: Path) -> None:
    desk = Desk(RUN, 1, 1, tmp_path)
    desk.answer(ask(MessageType.TRAIN, 1))
    record = desk.answer(ask(MessageType.QUERY, 0)).content[words.METRICS]
    assert dict(record) == {words.PARTITION_ID: 1, words.STATE_ROUND: 1}


def test_a_state_that_cannot_be_kept_is_not_used(tmp_path: Path) -> None:
    desk = Desk(RUN, 1, 0, tmp_path / "state")
    (tmp_path / "state").write_text("a file where the folder should be")
    reply = desk.answer(ask(MessageType.TRAIN, 1))
    assert reply.has_error() and "NotADirectoryError" in str(reply.error.reason)
    (tmp_path / "state").unlink()
    assert loss(desk, 1) == loss(Desk(RUN, 1, 0, tmp_path / "other"), 1)


def test_a_reply_that_would_be_broken_off_is_not_sent(tmp_path: Path) -> None:
    most = {"config": to_json(load_config([*WORDS, "runtime.max_reply_bytes=20"]))}
    desk = Desk({**most, "federation": "abc"}, 1, 0, tmp_path)
    reply = desk.answer(ask(MessageType.TRAIN, 1))
    assert "bytes: at most 20 (runtime.max_reply_bytes)" in str(reply.error.reason)
    assert desk.answer(ask(MessageType.QUERY, 0)).content[words.METRICS][words.STATE_ROUND] == 0


def test_one_that_has_lost_its_state_unasked_says_so(tmp_path: Path) -> None:
    lost = Desk(RUN, 1, 0, tmp_path / "a")
    reply = lost.answer(ask(MessageType.TRAIN, 3))
    assert reply.error.code == words.STRANGER
    lost.answer(ask(MessageType.QUERY, 0))
    assert lost.answer(ask(MessageType.TRAIN, 3)).has_content()
    again = Desk(RUN, 1, 0, tmp_path / "a")  # with its state nobody need ask
    assert again.answer(ask(MessageType.TRAIN, 4)).has_content()
    assert Desk(RUN, 1, 0, tmp_path / "b").answer(ask(MessageType.TRAIN, 1)).has_content()


def offer(number: int | float | None) -> Message:
    message = ask(MessageType.QUERY, 0, packed=False)
    record = ConfigRecord({} if number is None else {words.OFFERED: number})
    message.content = pack(RecordDict({words.CONFIG: record}))
    return message


def test_a_client_without_a_number_takes_what_it_had_or_is_offered(tmp_path: Path) -> None:
    for nothing in (None, -1, 0.5):
        with pytest.raises(ConfigError, match="no number left for this client"):
            own_number(RUN, 1, tmp_path, offer(nothing))
    assert own_number(RUN, 1, tmp_path, offer(1)) == 1
    loss(Desk(RUN, 1, 0, tmp_path), 1)
    assert own_number(RUN, 2, tmp_path, offer(1)) == 0
    assert own_number({**RUN, "federation": "other"}, 2, tmp_path, offer(1)) == 1


def along(number: int, strength: float = 1.0) -> Message:
    """A train message that asks for the evaluation of the round before, too."""
    message = ask(MessageType.TRAIN, number, packed=False)
    message.content[words.CONFIG] = ConfigRecord(
        {words.SERVER_ROUND: number, words.PRIOR_STRENGTH: strength}
    )
    message.content[words.EVALUATION] = ConfigRecord({words.SERVER_ROUND: number - 1})
    return message


def test_who_is_asked_for_both_goes_back_before_it_evaluates(tmp_path: Path) -> None:
    desk = Desk(RUN, 1, 0, tmp_path)
    replies = [desk.answer(along(number)) for number in (1, 2, 3, 4, 3)]
    assert replies[4].content.object_id == replies[2].content.object_id
    assert replies[4].content.object_id != replies[3].content.object_id


def test_who_has_failed_to_train_is_where_it_was(tmp_path: Path) -> None:
    desk = Desk(RUN, 1, 0, tmp_path)
    expected = [loss(Desk(RUN, 1, 0, tmp_path / "other"), 1), loss(desk, 1)]
    failed = desk.answer(along(2, strength=-1.0))
    assert failed.has_content() and not has_trained(failed)
    record = desk.answer(ask(MessageType.QUERY, 0)).content[words.METRICS]
    assert dict(record)[words.STATE_ROUND] == 1
    assert loss(desk, 1) == expected[0] == expected[1]


def test_what_an_evaluation_leaves_behind_is_kept(tmp_path: Path) -> None:
    """A client with a router remembers what that did, and tells what is other now."""
    mixture = [*WORDS, "strategy=fedavg", "model=moe"]
    run = {"config": to_json(load_config(mixture)), "federation": "abc"}
    desk = Desk(run, 1, 0, tmp_path)
    shared = to_record(desk.experiment.shared)
    message = ask(MessageType.EVALUATE, 1, packed=False)
    message.content[words.ARRAYS] = shared

    def compared(by: Desk) -> float:
        sums = by.answer(message).content.array_records[words.ROUTING][words.SUMS].numpy()
        place = by.experiment.router.kind.num_experts + TOTALS.index("compared")  # type: ignore[union-attr]
        return float(sums[place])

    assert compared(desk) == 0
    assert compared(desk) > 0
    assert compared(Desk(run, 1, 0, tmp_path)) > 0  # after a restart


def test_nonsense_is_an_error_reply(tmp_path: Path) -> None:
    desk = Desk(RUN, 1, 0, tmp_path)
    message = ask(MessageType.TRAIN, 1)
    message.content[words.CONFIG] = ConfigRecord({"b": 1})
    assert desk.answer(message).has_error()  # packed, and something beside it


def test_a_farewell_is_understood() -> None:
    assert farewell(ask(MessageType.QUERY, 0)) is None
    said = ask(MessageType.QUERY, 0, packed=False)
    said.content[words.CONFIG] = ConfigRecord({words.FAREWELL: "completed"})
    assert farewell(said) == "completed"
    said.metadata.message_type = MessageType.TRAIN
    assert farewell(said) is None


def test_who_cannot_take_part_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"client.partition=2: this federation has 2 clients"):
        Desk(RUN, 1, 2, tmp_path)
    with pytest.raises(ConfigError, match="no resolved configuration"):
        Desk({"overrides": "+experiment=fedavg"}, 1, 0, tmp_path)
    with pytest.raises(RunError, match="not a plain name"):
        Desk({**RUN, "federation": "../x"}, 1, 0, tmp_path)
    with pytest.raises(DataError, match="data=digits: a client can bring a table of its own only"):
        Desk(RUN, 1, 0, tmp_path, tmp_path / "mine.csv")
    words_of_sites = [
        "data=table", "data.target=y", "data.features=[a]", "data.task=regression",
        "partition=iid", "partition.num_clients=2", "model=linear",
    ]  # fmt: skip
    sites = {"config": to_json(load_config(words_of_sites))}
    with pytest.raises(ConfigError, match=r"client\.data: no value given"):
        Desk(sites, 1, 0, tmp_path)
    rows = "".join(f"{value},{value * 2}\n" for value in np.linspace(0, 1, 20))
    (tmp_path / "mine.csv").write_text(f"a,y\n{rows}")
    desk = Desk(sites, 1, 1, tmp_path, tmp_path / "mine.csv")
    assert desk.experiment.data.num_samples == 20


def test_who_was_asked_who_it_is_is_to_be_asked_again() -> None:
    question = Message(RecordDict(), 5, MessageType.QUERY)
    assert cut_off(question).error.code == words.STRANGER
    assert cut_off(Message(RecordDict(), 5, MessageType.TRAIN)).error.code == words.CLIENT_FAILED
