"""Replies as columns, against a loop over what each client was made to say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmoe.messages.arrays import Records, Stack, stack_of, to_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.parts import Part, example_weights, weighted_sum
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import ensure_task_identity, set_message_id
from fedmoe.messages.sizes import content_bytes

Arrays = dict[str, NDArray[Any]]
Numbers = dict[str, int | float]
Rows = Sequence[int]


@pytest.fixture(autouse=True)
def identity() -> None:
    ensure_task_identity()


@dataclass
class Said:
    """What each of C clients says."""

    arrays: list[Arrays]
    numbers: list[Numbers]

    @classmethod
    def by(cls, count: int, seed: int = 0) -> "Said":
        generator = np.random.default_rng(seed)
        arrays: list[Arrays] = [
            {
                "w": generator.normal(size=(2, 3)).astype(np.float32),
                "b": np.asarray(generator.normal(), dtype=np.float64),
                "steps": generator.integers(-5, 100, size=2),
            }
            for _ in range(count)
        ]
        numbers: list[Numbers] = [
            {"num-examples": int(generator.integers(1, 99)), "loss": float(generator.normal())}
            for _ in range(count)
        ]
        return cls(arrays, numbers)

    def stack(self, rows: Rows) -> Stack:
        names = self.arrays[0]
        tables = {name: np.stack([self.arrays[row][name] for row in rows]) for name in names}
        return Stack({name: torch.from_numpy(table) for name, table in tables.items()})

    def part(self, rows: Rows, merged: bool = False) -> Part:
        metrics = {
            name: np.array([self.numbers[row][name] for row in rows]) for name in self.numbers[0]
        }
        if not merged:
            return Part(np.array(rows), {"arrays": self.stack(rows), "metrics": metrics})
        mean = {name: torch.from_numpy(np.asarray(a)) for name, a in self.mean(rows).items()}
        return Part(np.array(rows), {"metrics": metrics}, {"arrays": mean})

    def mean(self, rows: Rows) -> Arrays:
        """Weighted by number of examples; whole numbers are the first client's."""
        total = sum(self.numbers[row]["num-examples"] for row in rows)
        means: Arrays = {}
        for name, like in self.arrays[0].items():
            if like.dtype.kind == "i":
                means[name] = self.arrays[rows[0]][name]
                continue
            value = np.zeros(like.shape)
            for row in rows:
                value += self.numbers[row]["num-examples"] / total * self.arrays[row][name]
            means[name] = value.astype(like.dtype)
        return means

    def content(self, row: int) -> RecordDict:
        return RecordDict(
            {"arrays": to_record(self.arrays[row]), "metrics": MetricRecord({**self.numbers[row]})}
        )


def requests(count: int, as_list: bool = False) -> Sequence[Message]:
    """Nodes fall, so that their order is not that of their numbers."""
    sent = Broadcast(range(1 + count, 1, -1), "train", {"config": ConfigRecord({"x": 1})})
    if not as_list:
        return sent
    for number, message in enumerate(sent):
        set_message_id(message, f"m{number}")
    return list(sent)


def replies_of(said: Said, parts: Sequence[Rows], as_list: bool = False) -> Replies:
    """Those of no part are messages of their own."""
    sent = requests(len(said.arrays), as_list)
    loose = set(range(len(sent))).difference(*parts)
    plain = {row: Message(said.content(row), reply_to=sent[row]) for row in sorted(loose)[::-1]}
    return Replies(sent, [said.part(rows) for rows in parts], plain)


LAYOUTS: list[Any] = [
    pytest.param([[0, 1, 2, 3, 4, 5]], id="one part"),
    pytest.param([[4, 0, 5, 2, 1, 3]], id="one part in another order"),
    pytest.param([[0, 1, 2], [3, 4, 5]], id="two parts"),
    pytest.param([[5, 1, 2], [3, 0, 4]], id="two parts that cross"),
    pytest.param([[3, 1], [5, 0]], id="two parts and loose ones"),
    pytest.param([[0, 1, 3, 4, 5]], id="one loose"),
    pytest.param([], id="all loose"),
]


def assert_says(replies: Replies, said: Said, clients: Sequence[int], total: int = 6) -> None:
    """Columns and messages are those of the clients, in that order."""
    assert len(replies) == len(clients)
    assert replies.nodes == [1 + total - client for client in clients]
    stacked = replies.arrays()
    for name in said.arrays[0]:
        expected = np.stack([said.arrays[client][name] for client in clients])
        np.testing.assert_array_equal(stacked[name].numpy(), expected)
        assert stacked[name].numpy().dtype == expected.dtype
    numbers = replies.numbers()
    assert list(numbers) == list(said.numbers[0])
    for key, column in numbers.items():
        assert column.tolist() == [said.numbers[client][key] for client in clients]
        assert column.dtype == (np.int64 if key == "num-examples" else np.float64)
    for message, client in zip(replies, clients, strict=True):
        assert message.content == said.content(client)
        assert type(message.content["metrics"]["num-examples"]) is int
        assert message.metadata.src_node_id == 1 + total - client
        assert message.metadata.message_type == "train"


# ------------------------------------------------------------------------------ messages, columns


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("parts", LAYOUTS)
def test_columns_are_what_a_loop_over_the_clients_says(parts: list[Rows], as_list: bool) -> None:
    said = Said.by(6)
    assert_says(replies_of(said, parts, as_list), said, range(6))


@pytest.mark.parametrize("parts", LAYOUTS)
def test_replies_are_indexed_and_sliced_as_a_list(parts: list[Rows]) -> None:
    said = Said.by(6)
    replies = replies_of(said, parts, as_list=True)
    early = replies[-2]
    messages = list(replies)
    assert early is messages[4]
    for place in range(-6, 6):
        assert replies[place] is messages[place]
    assert [id(m) for m in replies[4:0:-2]] == [id(messages[4]), id(messages[2])]
    for place in (6, -7):
        with pytest.raises(IndexError):
            replies[place]
    for place, message in enumerate(messages):
        assert message.content == said.content(place)
        assert message.metadata.reply_to_message_id == f"m{place}"


@pytest.mark.parametrize("parts", LAYOUTS)
def test_a_total_is_a_loop_over_the_clients(parts: list[Rows]) -> None:
    said = Said.by(6)
    replies = replies_of(said, parts)
    total = replies.total("arrays")
    for name in said.arrays[0]:
        expected = sum(said.arrays[client][name].astype(np.float64) for client in range(6))
        assert total[name].dtype == torch.float64
        np.testing.assert_allclose(total[name].numpy(), expected, rtol=1e-12, atol=1e-12)
    assert set(replies._made) == set(replies.plain)


def test_arrays_are_rows_of_their_stack_until_they_are_read() -> None:
    for reply in replies_of(Said.by(3), [[2, 0, 1]]):
        assert stack_of(cast(ArrayRecord, reply.content["arrays"])) is not None


def test_columns_of_one_whole_part_are_not_copied() -> None:
    said = Said.by(4)
    replies = replies_of(said, [[0, 1, 2, 3]])
    stack = replies.parts[0].records["arrays"]
    assert isinstance(stack, Stack)
    assert replies.arrays() is stack.tensors
    assert replies.numbers() is replies.parts[0].records["metrics"]


def test_only_numbers_that_all_have_make_a_column() -> None:
    said = Said.by(5)
    sent = requests(5)
    more = said.part([3, 1])
    cast(dict[str, Any], more.records["metrics"])["extra"] = np.array([1.0, 2.0])
    plain = {row: Message(said.content(row), reply_to=sent[row]) for row in (0, 4)}
    assert list(Replies(sent[:4], [more, said.part([0, 2])], {}).numbers()) == [
        "num-examples", "loss"
    ]  # fmt: skip
    for message in plain.values():
        message.content.metric_records["metrics"]["extra"] = 3.0
    replies = Replies(sent, [more, said.part([2])], plain)
    assert list(replies.numbers()) == ["num-examples", "loss"]
    assert Replies(sent[:2], [], {0: plain[0], 1: plain[4]}).numbers()["extra"].tolist() == [3, 3]
    del plain[4].content["metrics"]
    assert replies.numbers() == {}
    assert replies.numbers("insight") == {}
    assert more.numbers("arrays") == {}


def test_whole_numbers_stay_whole_unless_somebody_has_a_fraction() -> None:
    said = Said.by(4)
    replies = replies_of(said, [[2, 0]])
    assert replies.numbers()["num-examples"].dtype.kind == "i"
    replies.plain[3].content.metric_records["metrics"]["num-examples"] = 2.5
    column = replies.numbers()["num-examples"].tolist()
    assert column == [*(said.numbers[c]["num-examples"] for c in range(3)), 2.5]


def test_no_replies_have_no_columns() -> None:
    replies = Replies.of([])
    assert (len(replies), list(replies), replies.nodes, replies.numbers()) == (0, [], [], {})


# ---------------------------------------------------------------------------------------- select


@settings(max_examples=80)
@given(st.data())
def test_some_of_the_replies(data: st.DataObject) -> None:
    """Any choice of any layout, some of whose messages have been made."""
    ensure_task_identity()
    count = data.draw(st.integers(1, 7))
    said = Said.by(count, seed=data.draw(st.integers(0, 9)))
    order = data.draw(st.permutations(range(count)))
    cut = sorted(data.draw(st.lists(st.integers(0, count), min_size=2, max_size=2)))
    parts = [rows for rows in (order[: cut[0]], order[cut[0] : cut[1]]) if rows]
    replies = replies_of(said, parts, as_list=data.draw(st.booleans()))
    made = {row: replies[row] for row in data.draw(st.sets(st.integers(0, count - 1)))}
    keep = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    chosen = replies.select(np.array(keep))
    for place, row in enumerate(keep):
        if row in made:
            assert chosen[place] is made[row]
    assert sorted(chosen.plain) == [n for n, row in enumerate(keep) if row in replies.plain]
    assert_says(chosen, said, keep, total=count)
    assert_says(replies, said, range(count), total=count)  # which stayed as they were
    again = chosen.select(np.array([len(keep) - 1]))  # and some of some
    assert_says(again, said, keep[-1:], total=count)


def test_all_of_them_are_themselves_and_none_are_none() -> None:
    replies = replies_of(Said.by(3), [[0, 2]])
    assert replies.select(np.arange(3)) is replies
    nobody = replies.select(np.zeros(0, dtype=np.int64))
    assert (len(nobody), list(nobody), nobody.parts, nobody.numbers()) == (0, [], [], {})


def test_good_messages_come_in_the_order_of_their_nodes() -> None:
    said = Said.by(4)
    sent = requests(4)
    came = [Message(said.content(row), reply_to=sent[row]) for row in range(4)]
    came[1] = Message(Error(2, "no"), reply_to=sent[1])
    good = Replies.of(iter(came))
    assert good.nodes == [2, 3, 5]  # the first request went to node 5
    assert [message.metadata.src_node_id for message in good] == [2, 3, 5]
    assert good.numbers()["loss"].tolist() == [said.numbers[row]["loss"] for row in (3, 2, 0)]
    np.testing.assert_array_equal(good.arrays()["w"][0].numpy(), said.arrays[3]["w"])


@pytest.mark.parametrize("parts", [[[2, 0, 4]], [[4], [0, 2]], []])
def test_columns_without_errors_stay_columns(parts: list[Rows]) -> None:
    said = Said.by(5)
    replies = replies_of(said, parts)
    assert Replies.of(replies) is replies
    replies.plain[3] = Message(Error(2, "no"), reply_to=replies.requests[3])
    good = Replies.of(replies)
    assert_says(good, said, [0, 1, 2, 4], total=5)
    assert len(good.parts) == len(parts)


# ----------------------------------------------------------------------------------------- means


@pytest.mark.parametrize("parts", LAYOUTS)
def test_the_weighted_sum_is_that_of_a_loop(parts: list[Rows]) -> None:
    said = Said.by(6)
    weight_C = np.random.default_rng(1).dirichlet(np.ones(6))
    mean = replies_of(said, parts).mean(weight_C)
    for name in ("w", "b"):
        expected = sum(
            weight * own[name] for weight, own in zip(weight_C, said.arrays, strict=True)
        )
        np.testing.assert_allclose(mean[name].numpy(), expected, rtol=1e-5)
        assert mean[name].numpy().dtype == said.arrays[0][name].dtype
    np.testing.assert_array_equal(mean["steps"].numpy(), said.arrays[0]["steps"])


def shares(said: Said, clients: Sequence[int]) -> NDArray[np.float64]:
    counts = [said.numbers[client]["num-examples"] for client in clients]
    return example_weights(np.array(counts))


MERGED: list[list[Rows]] = [
    [[0, 1, 2, 3, 4, 5]],
    [[0, 1], [2, 3], [4, 5]],
    [[0], [1, 2, 3, 4], [5]],
    [[0, 3, 1], [5, 2, 4]],
]


@pytest.mark.parametrize("parts", MERGED)
def test_means_of_shards_make_the_mean_of_all(parts: list[Rows]) -> None:
    said = Said.by(6, seed=3)
    assert len(set(shares(said, range(6)).tolist())) == 6  # or else the weights show nothing
    whole = replies_of(said, [range(6)])
    merged = Replies(requests(6), [said.part(rows, merged=True) for rows in parts], {})
    mean, expected = merged.mean(shares(said, range(6))), said.mean(range(6))
    for name, value in expected.items():
        np.testing.assert_allclose(mean[name].numpy(), value, rtol=1e-5, atol=1e-6)
        assert mean[name].numpy().dtype == value.dtype, name
    for name, column in merged.numbers().items():
        np.testing.assert_array_equal(column, whole.numbers()[name])
    size = whole.parts[0].bytes_per_reply
    assert [part.bytes_per_reply for part in merged.parts] == [size] * len(parts)


@pytest.mark.parametrize("seed", range(5))
def test_merged_whole_numbers_stay_the_first_clients(seed: int) -> None:
    """Shares that do not add up to 1 by a hair must not turn 7 into 6."""
    said = Said.by(9, seed)
    parts = [said.part(rows, merged=True) for rows in ([0, 1, 2], [3, 4, 5], [6, 7, 8])]
    steps = Replies(requests(9), parts, {}).mean(shares(said, range(9)))["steps"]
    assert steps.dtype == torch.int64
    np.testing.assert_array_equal(steps.numpy(), said.arrays[0]["steps"])


def test_a_merged_reply_cannot_be_left_out_but_a_whole_shard_can() -> None:
    said = Said.by(6, seed=3)
    parts = [said.part(rows, merged=True) for rows in ([0, 1, 2], [3, 4, 5])]
    merged = Replies(requests(6), parts, {})
    for keep in ([0, 1, 3, 4, 5], [1, 2], [0]):
        with pytest.raises(ValueError, match="a reply that was merged cannot be left out"):
            merged.select(np.array(keep))
    rest = merged.select(np.array([3, 4, 5]))
    mean = rest.mean(shares(said, [3, 4, 5]))
    for name, value in said.mean([3, 4, 5]).items():
        np.testing.assert_allclose(mean[name].numpy(), value, rtol=1e-5, atol=1e-6)


def test_merged_arrays_are_in_no_message() -> None:
    said = Said.by(3)
    merged = Replies(requests(3), [said.part([0, 1, 2], merged=True)], {})
    assert all(list(message.content) == ["metrics"] for message in merged)
    with pytest.raises(ValueError, match="only the mean of the clients' arrays has come"):
        merged.arrays()


def test_replies_with_a_failed_client_beside_the_merged_ones() -> None:
    said = Said.by(5, seed=1)
    sent = requests(5)
    failed = {2: Message(Error(2, "no"), reply_to=sent[2])}
    parts = [said.part([1, 0], merged=True), said.part([3, 4], merged=True)]
    good = Replies.of(Replies(sent, parts, failed))
    assert good.nodes == [6, 5, 3, 2]
    mean = good.mean(shares(said, [0, 1, 3, 4]))
    np.testing.assert_allclose(mean["w"].numpy(), said.mean([0, 1, 3, 4])["w"], rtol=1e-5)


@pytest.mark.parametrize("loose", [True, False])
def test_a_mean_of_some_is_not_taken_for_that_of_all(loose: bool) -> None:
    said = Said.by(4)
    sent = requests(4)
    parts = [said.part([0, 1], merged=True)] + ([] if loose else [said.part([2, 3])])
    plain = {row: Message(said.content(row), reply_to=sent[row]) for row in (2, 3) if loose}
    with pytest.raises(ValueError, match="only the mean of some clients' arrays has come"):
        Replies(sent, parts, plain).mean(np.full(4, 0.25))


def test_a_reply_weighs_what_its_message_does() -> None:
    said = Said.by(3)
    records: Records = {**said.part([0, 1, 2]).records, "é": {"ü": np.arange(3)}}
    records["payload"] = Stack({"p": torch.zeros(3, 4, dtype=torch.float64)})
    part = Part(np.arange(3), records)
    for message in Replies(requests(3), [part], {}):
        assert part.bytes_per_reply == content_bytes(message.content)


def test_shares_of_the_examples() -> None:
    assert example_weights(np.array([1, 3])).tolist() == [0.25, 0.75]
    assert example_weights(np.array([0, 0, 0, 0])).tolist() == [0.25] * 4


def test_a_sum_in_the_dtype_of_the_weights() -> None:
    table = {
        "half": torch.tensor([[1.0], [2.0]], dtype=torch.float16),
        "flag": torch.tensor([[True], [False]]),
        "count": torch.tensor([3, 9]),
    }
    found = weighted_sum(table, np.array([0.25, 0.75]))
    assert found["half"].dtype == torch.float16 and found["half"].tolist() == [1.75]
    assert found["flag"].tolist() == [True]
    assert found["count"].item() == 3


def test_messages_that_came_over_a_network_may_hold_any_array() -> None:
    sent = requests(2)
    own = [
        Message(RecordDict({"arrays": ArrayRecord({"w": Array(value)})}), reply_to=one)
        for one, value in zip(sent, (np.ones((1, 2)), np.zeros((1, 2))), strict=True)
    ]
    assert Replies(sent, [], dict(enumerate(own))).arrays()["w"].tolist() == [[[1, 1]], [[0, 0]]]
