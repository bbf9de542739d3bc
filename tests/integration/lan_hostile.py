"""Clients of a federation that misbehave: threads of the test, and a process that can be held."""

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe.client import main
from fedmoe.errors import RunError
from fedmoe.lan import node
from fedmoe.lan.desk import Desk, farewell, refusal
from fedmoe.lan.fleet import Access, FleetConnection
from fedmoe.lan.lost import LostError
from fedmoe.lan.packing import pack, unpack
from fedmoe.lan.recall import Recall
from fedmoe.messages import words
from fedmoe.messages.arrays import to_record

_STEP, _RETRY = 0.02, 1.0  # seconds
Arrays = dict[str, NDArray[Any]]
Change = Callable[[Arrays, MetricRecord], object]


class Hostile(threading.Thread):
    """A client that answers as any other, but for what becomes of its replies to training.

    Attributes:
        number: which client it is.
        connection: the present one.
        round: of the last message; 0 before there was one.
        ended: is set when it is to go.
    """

    def __init__(self, access: Access, number: int, folder: Path) -> None:
        super().__init__(daemon=True)
        self.access, self.number, self.folder = access, number, folder
        self.connection: FleetConnection
        self.round = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """Take part until the run is over."""
        self.folder.mkdir(exist_ok=True)
        while not self.ended.wait(_RETRY):
            try:
                with FleetConnection(self.access, Recall(self.folder, self.number)) as connection:
                    self.connection = connection
                    self._answer_all()
            except LostError:
                continue  # there is no server as yet

    def _answer_all(self) -> None:
        desk: Desk | None = None
        patience = _STEP
        while not self.ended.is_set():
            if (message := self.connection.receive()) is None:
                self.ended.wait(patience)
                patience = min(2 * patience, 1.0)  # a dozen of them would keep a server busy
                continue
            patience = _STEP
            if desk is None:
                run_id = message.metadata.run_id
                config = self.connection.run_config(run_id)
                desk = Desk(config, run_id, self.number, self.folder)
            if farewell(message) is not None:
                self.ended.set()
            if message.metadata.message_type != MessageType.TRAIN:
                self.connection.send(desk.answer(message), 0.0)
                continue
            self.round += 1
            self.play(message, desk)

    def play(self, message: Message, desk: Desk) -> None:
        """What becomes of a message to train: a reply is sent."""
        self.connection.send(desk.answer(message), 0.0)


class Lying(Hostile):
    """Damages its replies, each in another way."""

    def __init__(self, access: Access, number: int, folder: Path, *changes: Change) -> None:
        super().__init__(access, number, folder)
        self._changes = changes

    def play(self, message: Message, desk: Desk) -> None:
        content = unpack(desk.answer(message).content)
        record, metrics = content[words.ARRAYS], content[words.METRICS]
        assert isinstance(record, ArrayRecord) and isinstance(metrics, MetricRecord)
        arrays = {name: array.numpy().copy() for name, array in record.items()}
        self._changes[self.round - 1](arrays, metrics)
        content[words.ARRAYS] = to_record(arrays)
        self.connection.send(Message(pack(content), reply_to=message), 0.0)


class Replaying(Hostile):
    """Sends its last reply once more before each new one, and that twice.

    It also keeps the rounds waiting until it is told to let them go on.
    """

    def __init__(self, access: Access, number: int, folder: Path) -> None:
        super().__init__(access, number, folder)
        self.may_end = 0  # the round that may come to its end
        self._last: Message | None = None

    def play(self, message: Message, desk: Desk) -> None:
        if self._last is not None:
            self.connection.send(self._last, 0.0)
        self._last = desk.answer(message)
        while self.round > self.may_end and not self.ended.wait(_STEP):
            pass
        for _ in range(2):
            self.connection.send(self._last, 0.0)


class Hanging(Hostile):
    """In one round does nothing until it is released, and then says that it was too late."""

    def __init__(self, access: Access, number: int, folder: Path, when: int) -> None:
        super().__init__(access, number, folder)
        self.released = threading.Event()
        self._when = when

    def play(self, message: Message, desk: Desk) -> None:
        if self.round != self._when:
            super().play(message, desk)
            return
        self.released.wait()
        self.connection.send(refusal(message, RunError("too late")), 0.0)


class Vanishing(Hostile):
    """Fails in its first round; in the next it is gone, like a machine without power."""

    def play(self, message: Message, desk: Desk) -> None:
        if self.round == 1:
            self.connection.send(refusal(message, ZeroDivisionError("on purpose")), 0.0)
            return
        self.connection._heartbeat.stop()  # of the heartbeats
        self.ended.wait()
        raise LostError  # without a farewell


def poison(value: float) -> Change:
    """One element is no number."""

    def change(arrays: Arrays, _: MetricRecord) -> None:
        next(iter(arrays.values())).flat[0] = value

    return change


def other_shape(arrays: Arrays, _: MetricRecord) -> None:
    """One array has another row."""
    name, array = next(iter(arrays.items()))
    arrays[name] = np.concatenate([array, array[:1]])


def other_dtype(arrays: Arrays, _: MetricRecord) -> None:
    """One array is of float64."""
    name, array = next(iter(arrays.items()))
    arrays[name] = array.astype(np.float64)


def oversized(arrays: Arrays, _: MetricRecord) -> None:
    """One array is as large as the whole may not be: 400 kB."""
    arrays[next(iter(arrays))] = np.zeros(100_000, np.float32)


def forged_weight(_: Arrays, metrics: MetricRecord) -> None:
    """It has trained on all the samples of the world."""
    metrics[words.NUM_EXAMPLES] = 10**12


class _Held(Desk):
    """Trains only while there is no file `hold`; `held-NUMBER` says that it waits."""

    @override
    def answer(self, message: Message) -> Message:
        if message.metadata.message_type == MessageType.TRAIN and Path("hold").exists():
            Path(f"held-{self._client}").touch()
            while Path("hold").exists():
                time.sleep(_STEP)
        return super().answer(message)


if __name__ == "__main__":
    with patch.object(node, "Desk", _Held):
        sys.exit(main())
