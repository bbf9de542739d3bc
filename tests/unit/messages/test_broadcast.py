"""A broadcast is the list of messages that it stands for, to whoever looks."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.messages.arrays import to_record
from fedmoe.messages.broadcast import Broadcast, distinct_contents
from fedmoe.messages.seams import RecordType, ensure_task_identity

NODES = (7, 3, 5, 11, 2)
Records = Mapping[str, RecordType]


@pytest.fixture(autouse=True)
def identity() -> None:
    ensure_task_identity()


def records() -> dict[str, RecordType]:
    return {
        "arrays": to_record({"w": np.arange(3, dtype=np.float32)}),
        "config": ConfigRecord({"mu": 0.5}),
        "metrics": MetricRecord({"x": 1}),
    }


def guidance(value: float) -> dict[str, RecordType]:
    return {
        "guidance": to_record({"g": np.full(2, value)}),
        "own": ConfigRecord({"number": value}),
    }


def broadcast(personal: Sequence[Records] | None = None, nodes: Sequence[int] = NODES) -> Broadcast:
    return Broadcast(nodes, "train", records(), personal=personal)


def ordinary(place: int, personal: Sequence[Records] | None = None) -> Message:
    """The message at one place, made as Flower's strategies make it."""
    content = RecordDict({**records(), **(dict(personal[place]) if personal else {})})
    return Message(content, NODES[place], "train")


def config(message: Message, key: str = "config") -> ConfigRecord:
    return message.content.config_records[key]


def assert_same(mine: Message, theirs: Message) -> None:
    assert mine.content == theirs.content
    assert list(mine.content) == list(theirs.content)
    assert mine.metadata.dst_node_id == theirs.metadata.dst_node_id
    assert mine.metadata.message_type == theirs.metadata.message_type
    assert mine.metadata.src_node_id == theirs.metadata.src_node_id


@pytest.mark.parametrize("personal", [None, [guidance(n) for n in range(5)]])
def test_its_messages_are_those_of_flowers_strategies(personal: Sequence[Records] | None) -> None:
    sent = broadcast(personal)
    assert len(sent) == 5
    for place, message in enumerate(sent):
        assert_same(message, ordinary(place, personal))


def test_it_is_indexed_and_sliced_as_a_list() -> None:
    sent = broadcast()
    messages = list(sent)
    assert [id(m) for m in sent] == [id(m) for m in messages]  # each is made once
    for place in range(-5, 5):
        assert sent[place] is messages[place]
    for start in (None, -7, -2, 0, 1, 4, 9):
        for stop in (None, -7, -1, 0, 3, 9):
            for step in (None, -2, -1, 1, 2):
                chosen = sent[start:stop:step]
                assert [id(m) for m in chosen] == [id(m) for m in messages[start:stop:step]]
    for place in (5, -6, 100):
        with pytest.raises(IndexError):
            sent[place]
    assert list(reversed(sent)) == messages[::-1]
    assert sent.index(messages[3]) == 3 and messages[2] in sent


def test_a_message_is_the_same_however_it_is_reached_first() -> None:
    sent = broadcast()
    last = sent[-1]
    assert sent[4] is last and sent[3:][1] is last and list(sent)[4] is last


def test_without_nodes_there_is_nothing() -> None:
    sent = broadcast(nodes=[])
    assert (len(sent), list(sent), sent.distinct(), sent[:]) == (0, [], [], [])
    assert len(sent.take(np.zeros(0, dtype=np.int64))) == 0


def test_arrays_are_shared_and_other_records_are_each_messages_own() -> None:
    told = guidance(1.0)
    given = records()
    sent = Broadcast(NODES, "train", given, personal=[told] * len(NODES))
    for message in sent:
        assert message.content["arrays"] is given["arrays"]
        assert message.content["guidance"] is told["guidance"]
    config(sent[0])["mu"] = 9.0
    config(sent[0], "own")["number"] = 9.0
    sent[0].content.metric_records["metrics"]["x"] = 9
    sent[0].content["more"] = ConfigRecord({})
    del sent[0].content["arrays"]
    for place in range(1, len(NODES)):
        assert_same(sent[place], ordinary(place, [guidance(1.0)] * len(NODES)))
    assert config_of(given)["mu"] == 0.5 and told == guidance(1.0)


def test_personal_records_are_for_every_node_or_for_none() -> None:
    with pytest.raises(ValueError, match="2 sets of personal records for 5 nodes"):
        broadcast([guidance(0), guidance(1)])


def test_what_was_changed_is_what_is_sent() -> None:
    sent = broadcast()
    config(sent[3])["mu"] = 2.0
    del sent[1].content["arrays"]
    told = told_by(sent.distinct(), len(sent))
    assert config_of(told[3]) == {"mu": 2.0}
    assert "arrays" not in told[1] and config_of(told[1]) == {"mu": 0.5}
    assert all(told[place] == ordinary(place).content for place in (0, 2, 4))


def config_of(content: Mapping[str, Any]) -> ConfigRecord:
    return cast(ConfigRecord, content["config"])


def told_by(distinct: Any, count: int) -> list[RecordDict]:
    """Each place's content; every place is sent exactly one."""
    told: dict[int, RecordDict] = {}
    for content, kind, places in distinct:
        assert kind == "train"
        assert places.dtype.kind == "i" and places.ndim == 1
        for place in places.tolist():
            assert place not in told
            told[place] = content
    return [told[place] for place in range(count)]


@settings(max_examples=60)
@given(st.data())
def test_contents_are_told_apart_no_more_than_they_have_to_be(data: st.DataObject) -> None:
    """Against each message looked at: nodes that are told the same share a content."""
    ensure_task_identity()
    count = data.draw(st.integers(1, 8))
    pool = [guidance(value) for value in range(3)]
    which = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    personal = [pool[w] for w in which] if data.draw(st.booleans()) else None
    sent = Broadcast(range(2, 2 + count), "train", records(), personal=personal)
    made = data.draw(st.sets(st.integers(0, count - 1)))
    for place in made:
        config(sent[place])["mu"] = float(place)
    distinct = sent.distinct()
    told = told_by(distinct, count)
    rest = {which[place] if personal else 0 for place in range(count) if place not in made}
    assert len(distinct) == len(made) + len(rest)
    for place in range(count):
        expected = {**records(), **(guidance(which[place]) if personal else {})}
        expected["config"] = ConfigRecord({"mu": float(place) if place in made else 0.5})
        assert told[place] == expected
    assert [message.content for message in sent] == told


@settings(max_examples=60)
@given(st.data())
def test_taken_messages_are_those_at_the_places(data: st.DataObject) -> None:
    ensure_task_identity()
    personal = data.draw(st.sampled_from([None, [guidance(n) for n in range(5)]]))
    sent = Broadcast(NODES, "train", records(), personal=personal, mergeable=True)
    made = data.draw(st.sets(st.integers(0, 4)))
    for place in made:
        config(sent[place])["mu"] = float(place)
    places = data.draw(st.lists(st.integers(0, 4), unique=True))
    taken = sent.take(np.array(places, dtype=np.int64))
    assert taken.mergeable and taken.kind == "train"
    assert list(taken.nodes) == [NODES[place] for place in places]
    assert len(taken.distinct()) <= len(places)
    if places:  # those of a second choice, too
        again = taken.take(np.array([len(places) - 1]))[0]
        assert_same(again, sent[places[-1]])
        assert (again is sent[places[-1]]) == (places[-1] in made)
    for mine, place in zip(taken, places, strict=True):
        assert (mine is sent[place]) == (place in made)
        assert_same(mine, sent[place])


def test_a_list_of_messages_is_told_apart_by_content_and_kind() -> None:
    one, other = RecordDict(records()), RecordDict(records())
    sent = [
        Message(one, 2, "train"),
        Message(other, 3, "train"),
        Message(one, 4, "train"),
        Message(one, 5, "evaluate"),
    ]
    found = [(id(c), kind, places.tolist()) for c, kind, places in distinct_contents(sent)]
    assert found == [
        (id(one), "train", [0, 2]), (id(other), "train", [1]), (id(one), "evaluate", [3])
    ]  # fmt: skip
    assert distinct_contents([]) == []


def test_a_broadcasts_contents_are_its_own_affair() -> None:
    sent = broadcast()
    assert [places.tolist() for _, _, places in distinct_contents(sent)] == [[0, 1, 2, 3, 4]]
    kept = sent[2].content
    assert isinstance(kept["arrays"], ArrayRecord)
    assert sorted(p.tolist() for _, _, p in distinct_contents(sent)) == [[0, 1, 3, 4], [2]]


def test_no_node_is_asked_twice() -> None:
    """Nobody could say which of two replies is meant, least of all once they are merged."""
    with pytest.raises(ValueError, match="node 3 is asked more than once"):
        broadcast(nodes=[2, 3, 4, 3])
