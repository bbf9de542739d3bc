"""A grid whose clients take their time, by a clock that the test moves."""

from collections.abc import Callable, Iterable
from typing import cast

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from polled_grid import PolledGrid

from fedmoe.messages import words
from fedmoe.messages.arrays import to_record
from fedmoe.messages.seams import ensure_task_identity, set_message_id

FIRST = 100  # client k is node 100 + k
Seconds = Callable[[int, int, bool], float | None]  # client, round, training; `None`: never


def examples(client: int) -> int:
    return 10 * (client + 1)


class SlowGrid(PolledGrid):
    """Clients that add their number + 1 to each weight, one message after the other.

    Attributes:
        takes: how long a client works on a message.
        now: the time, in seconds.
        asked: (round, client, training) of each message, in order.
        pulls: how often replies were looked for.
        spoil: changes a training reply, given client and round.
    """

    def __init__(self, clients: int, takes: Seconds) -> None:
        ensure_task_identity()
        self.clients, self.takes, self.now, self.pulls = clients, takes, 0.0, 0
        self.asked: list[tuple[int, int, bool]] = []
        self.spoil: Callable[[int, int, RecordDict], RecordDict | Error] = lambda c, r, x: x
        self._free = [0.0] * clients
        self._ready: dict[str, tuple[float, Message]] = {}

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    def client_id(self, node_id: int) -> int:
        return node_id - FIRST

    def get_node_ids(self) -> list[int]:
        return list(range(FIRST, FIRST + self.clients))

    def _push(self, message: Message) -> str:
        client = self.client_id(message.metadata.dst_node_id)
        training = message.metadata.message_type == MessageType.TRAIN
        config = cast(ConfigRecord, message.content[words.CONFIG])
        number = cast(int, config[words.SERVER_ROUND])
        self.asked.append((number, client, training))
        set_message_id(message, f"m{len(self.asked)}")
        seconds = self.takes(client, number, training)
        if seconds is not None:
            self._free[client] = max(self._free[client], self.now) + seconds
            reply = Message(self._answer(message, client, number, training), reply_to=message)
            self._ready[message.metadata.message_id] = (self._free[client], reply)
        return message.metadata.message_id

    def _answer(
        self, message: Message, client: int, number: int, training: bool
    ) -> RecordDict | Error:
        numbers: dict[str, int | float] = {words.NUM_EXAMPLES: examples(client), words.LOSS: 0.5}
        metrics = MetricRecord(dict(numbers))
        if not training:
            return RecordDict({words.METRICS: metrics})
        arrays = cast(ArrayRecord, message.content[words.ARRAYS])
        moved = to_record({name: a.numpy() + client + 1 for name, a in arrays.items()})
        content = RecordDict({words.ARRAYS: moved, words.METRICS: metrics})
        return self.spoil(client, number, content)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.pulls += 1
        due = [key for key in message_ids if key in self._ready and self._ready[key][0] <= self.now]
        return [self._ready.pop(key)[1] for key in due]
