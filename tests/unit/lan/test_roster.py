"""Clients that come, go, and come again, over a grid of Flower's."""

from collections.abc import Iterable

import pytest
from flwr.app import Error, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedmoe.errors import RunError
from fedmoe.lan.roster import Roster
from fedmoe.messages import words
from fedmoe.messages.seams import empty_run, ensure_task_identity, readdressed, set_message_id

SECOND_LIFE = 2**32


class FlowerGrid(Grid):
    """Nodes by Flower's id, each with what it says of itself; those without are silent."""

    def __init__(self, **said: MetricRecord | str) -> None:
        ensure_task_identity()
        self.said = {int(node.removeprefix("n")): one for node, one in said.items()}
        self.sent: list[Message] = []
        self.errors: dict[int, Error] = {}  # by Flower's node, in place of any reply

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return empty_run(1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str,
        ttl: float | None = None,
    ) -> Message:  # fmt: skip
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.said)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            set_message_id(message, str(len(self.sent)))
            self.sent.append(message)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.answer(self.sent[int(number)]) for number in message_ids]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(list(messages)))

    def answer(self, message: Message) -> Message:
        if error := self.errors.get(message.metadata.dst_node_id):
            return Message(error, reply_to=message)
        said = self.said[message.metadata.dst_node_id]
        if isinstance(said, str):
            return Message(Error(2, said), reply_to=message)
        return Message(RecordDict({words.METRICS: said}), reply_to=message)


def client(number: int, state_round: int = 0) -> MetricRecord:
    return MetricRecord({words.PARTITION_ID: number, words.STATE_ROUND: state_round})


def roster(grid: FlowerGrid, least: int = 1, *, resumed: bool = False) -> Roster:
    made = Roster(grid, resumed=resumed)
    made.wait_for(least, 5.0, num_clients=3)
    return made


def test_nodes_are_clients_as_where_they_are_simulated() -> None:
    made = roster(FlowerGrid(n70=client(2), n80=client(0), n90=client(1)), 3)
    assert list(made.get_node_ids()) == [2, 3, 4]
    assert [made.client_id(node) for node in (2, 3, 4)] == [0, 1, 2]


def test_messages_go_to_flowers_nodes_and_replies_come_from_ours() -> None:
    grid = FlowerGrid(n70=client(1), n80=client(0))
    made = roster(grid, 2)
    message = Message(RecordDict(), 3, MessageType.TRAIN)
    (reply,) = made.send_and_receive([message])
    assert grid.sent[-1].metadata.dst_node_id == 70
    assert message.metadata.dst_node_id == 3  # the strategy's own stays as it was
    assert reply.metadata.src_node_id == 3
    assert not made.send_and_receive([Message(RecordDict(), 4, MessageType.TRAIN)])  # not there


def test_what_comes_from_another_node_than_was_asked_keeps_its_sender() -> None:
    grid = FlowerGrid(n70=client(1), n80=client(0))
    made = roster(grid, 2)
    own, gone = made.push_messages(
        [Message(RecordDict(), node, MessageType.TRAIN) for node in (3, 4)]
    )
    assert own and not gone
    grid.sent[int(own)] = readdressed(grid.sent[int(own)], 80)  # so 80 answers for 70
    set_message_id(grid.sent[int(own)], own)
    (reply,) = made.pull_messages([own])
    assert reply.metadata.reply_to_message_id == own and reply.metadata.src_node_id == 80


@pytest.mark.parametrize("code", [words.STRANGER, 3, 5])  # its own process's, and two of Flower's
def test_who_was_cut_off_before_it_could_say_who_it_is_is_asked_again(code: int) -> None:
    grid = FlowerGrid(n70=client(1), n80=client(0))
    grid.errors[70] = Error(code, "cut off")
    made = Roster(grid)
    made.wait_for(1, 5.0, 2)
    assert list(made.get_node_ids()) == [2]
    grid.errors.clear()
    assert list(made.get_node_ids()) == [2, 3]


def test_those_who_are_nobody_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    odd = MetricRecord({words.PARTITION_ID: 0.5})
    grid = FlowerGrid(n1=client(0), n2=client(3), n3="no column 'dose'", n4=odd, n5=client(-1))
    assert list(roster(grid).get_node_ids()) == [2]
    assert "node 3 is left out: no column 'dose'" in caplog.text
    assert "node 2 is left out: it says that it is client 3; there are 0 to 2" in caplog.text
    assert caplog.text.count("is left out") == 4
    asked = len(grid.sent)
    assert asked == 5


def test_one_that_comes_again_with_its_state_is_the_same_node() -> None:
    grid = FlowerGrid(n1=client(0), n2=client(1))
    made = roster(grid, 2)
    del grid.said[1]
    assert list(made.get_node_ids()) == [3]
    grid.said[9] = client(0, state_round=4)
    assert list(made.get_node_ids()) == [2, 3]


def test_one_client_cannot_be_two_nodes(caplog: pytest.LogCaptureFixture) -> None:
    grid = FlowerGrid(n1=client(0), n9=client(1))
    made = roster(grid, 2)
    grid.said[10] = client(0, state_round=5)  # an impostor, or the old node is dead in fact
    for _ in range(2):
        assert list(made.get_node_ids()) == [2, 3]
        assert asked_for(2, made, grid) == 1
    assert caplog.text.count("node 10 has to wait: client 0 is there already") == 1
    del grid.said[1]
    assert list(made.get_node_ids()) == [2, 3]
    assert asked_for(2, made, grid) == 10
    grid.said[11] = client(0)
    assert list(made.get_node_ids()) == [2, 3]
    grid.said = {9: client(1)}  # both are gone: the rival is not kept either
    assert list(made.get_node_ids()) == [3]


def asked_for(node: int, made: Roster, grid: FlowerGrid) -> int:
    """Flower's node that a message to one of ours goes to."""
    (reply,) = made.send_and_receive([Message(RecordDict(), node, MessageType.TRAIN)])
    assert reply.metadata.src_node_id == node
    return grid.sent[-1].metadata.dst_node_id


def test_a_node_with_a_key_comes_again_under_its_number() -> None:
    grid = FlowerGrid(n70=client(0), n80=client(1))
    made = roster(grid, 2)
    del grid.said[70]
    assert list(made.get_node_ids()) == [3]
    grid.said[70] = client(0, state_round=4)
    assert list(made.get_node_ids()) == [2, 3]


def test_one_that_comes_again_without_is_another_node_of_the_same_client() -> None:
    grid = FlowerGrid(n1=client(0))
    made = roster(grid)
    grid.said = {9: client(0)}
    assert list(made.get_node_ids()) == [2 + SECOND_LIFE]
    assert made.client_id(2 + SECOND_LIFE) == 0
    grid.said = {10: client(0, state_round=1)}
    assert list(made.get_node_ids()) == [2 + SECOND_LIFE]


def test_in_a_run_that_goes_on_clients_should_have_their_state() -> None:
    grid = FlowerGrid(n1=client(0, state_round=7), n2=client(1))
    assert list(roster(grid, 2, resumed=True).get_node_ids()) == [2, 3 + SECOND_LIFE]


def offers(grid: FlowerGrid) -> dict[int, object]:
    """By Flower's node, the number that it was last offered."""
    return {
        message.metadata.dst_node_id: words.get_config(message.content).get(words.OFFERED)
        for message in grid.sent
        if message.metadata.message_type == MessageType.QUERY
    }


class Obliging(FlowerGrid):
    """Nodes that take the number that they are offered, those that say `-`."""

    def answer(self, message: Message) -> Message:
        offered = words.get_config(message.content).get(words.OFFERED)
        if self.said[message.metadata.dst_node_id] == "-" and type(offered) is int:
            return Message(RecordDict({words.METRICS: client(offered)}), reply_to=message)
        return super().answer(message)


def test_whoever_has_no_number_is_offered_a_free_one() -> None:
    grid = Obliging(n70="-", n80="-")
    made = roster(grid, 2)
    assert offers(grid) == {70: 0, 80: 1}
    grid.said = {80: "-", 90: "-"}
    assert list(made.get_node_ids()) == [3, 4]
    assert offers(grid)[90] == 2  # 0 has been somebody's, who may come again
    grid.said |= {95: "-", 96: "-"}
    assert list(made.get_node_ids()) == [2 + SECOND_LIFE, 3, 4]
    assert (offers(grid)[95], offers(grid)[96]) == (0, None)


def test_with_keys_a_node_is_one_client_alone(caplog: pytest.LogCaptureFixture) -> None:
    grid = Obliging(n70="-", n80=client(0), n90=client(1))
    made = Roster(grid, by_key={70: 2, 80: 0, 90: 0})
    made.wait_for(2, 5.0, num_clients=3)
    assert list(made.get_node_ids()) == [2, 4]
    assert offers(grid) == {70: 2, 80: 0, 90: 0}
    assert "node 90 is left out: it says that it is client 1, with the key of client 0" in (
        caplog.text
    )


def test_with_keys_one_that_was_away_is_asked_again() -> None:
    grid = FlowerGrid(n70=client(0, state_round=2), n80=client(1))
    made = Roster(grid, by_key={70: 0, 80: 1})
    made.wait_for(2, 5.0, num_clients=2)
    away = grid.said.pop(70)
    assert list(made.get_node_ids()) == [3]
    grid.said[70] = away
    assert list(made.get_node_ids()) == [2, 3]
    grid.said[70] = client(0)  # killed, and started again without its state
    assert list(made.get_node_ids()) == [2, 3]  # too soon for Flower to have seen it
    grid.errors = {70: Error(words.STRANGER, "has come again")}
    (reply,) = made.send_and_receive([Message(RecordDict(), 2, MessageType.TRAIN)])
    assert reply.has_error()
    grid.errors = {}
    assert list(made.get_node_ids()) == [2 + SECOND_LIFE, 3]


def test_too_few_clients_are_named() -> None:
    made = Roster(FlowerGrid(n1=client(2)))
    with pytest.raises(RunError, match=r"1 of 2 clients came within 0.1 seconds .*; came: 2$"):
        made.wait_for(2, 0.1, num_clients=3)


def test_farewell_is_said_to_all() -> None:
    grid = FlowerGrid(n1=client(0), n2=client(1))
    roster(grid, 2).say_farewell("completed")
    for message in grid.sent[-2:]:
        record = message.content[words.CONFIG]
        assert message.metadata.message_type == MessageType.QUERY
        assert record[words.FAREWELL] == "completed"
