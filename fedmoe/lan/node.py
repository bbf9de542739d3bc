"""A client process: waits for the server, answers its messages, and finds it again."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Message

from fedmoe.errors import ConfigError, DataError, FedmoeError, RunError
from fedmoe.lan.desk import Desk, cut_off, farewell, own_number, refusal
from fedmoe.lan.fleet import Access, FleetConnection
from fedmoe.lan.lost import LostError, RejectedError, RunOverError, StrangersError
from fedmoe.lan.pauses import Pauses
from fedmoe.lan.recall import Recall
from fedmoe.schema.client import SeatConfig

_LOG = logging.getLogger("fedmoe.lan.Node")
_RETRY_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Node:
    """One client of a federation, for as long as the process lives.

    Attributes:
        access: how the server is reached.
        client: which client this is; `None` for the number that it is offered.
        root: folder for private state.
        data: the client's own table; `None` for its share of what the experiment names.
        wait: seconds without a server after which it gives up.
        stay: whether to wait for the next run when one has come to its end.
    """

    access: Access
    client: int | None
    root: Path
    data: Path | None
    wait: float
    stay: bool
    _desks: dict[int, Desk] = field(default_factory=dict, init=False)  # of one run, by its number
    _unsent: dict[str, Message] = field(default_factory=dict, init=False)  # by what it replies to

    def run(self) -> None:
        """Answer until a run has come to its end.

        Raises:
            RunError: there was no server for too long.
            FedmoeError: the data or the configuration are not such that this client could train,
                or the server refuses it before it has ever let it in.
        """
        recall = Recall(self.root, self.client)
        if not recall.claim():  # two would take messages and state from each other
            raise ConfigError(
                f"client.state={self.root}: another process is the same {self._name} there; end "
                "it, or name another folder"
            )
        try:
            self._take_part(recall)
        finally:
            recall.release()

    def _take_part(self, recall: Recall) -> None:
        last_seen = time.monotonic()
        told = was_in = False
        while True:
            try:
                with FleetConnection(self.access, recall) as connection:
                    _LOG.info("%s: connected to %s", self._name, self.access.address)
                    told, was_in = False, True
                    try:
                        self._settle(connection)
                        if self._answer_all(connection):
                            return
                    finally:
                        last_seen = time.monotonic()
            except LostError as error:
                if isinstance(error, StrangersError) and not was_in:
                    raise ConfigError(f"runtime.server={self.access.address}: {error}") from error
                if not told:
                    _LOG.warning(
                        "%s: waiting for the server at %s (%s)",
                        self._name, self.access.address, error,
                    )  # fmt: skip
                    told = True
            if time.monotonic() - last_seen > self.wait:
                raise RunError(
                    f"runtime.server={self.access.address}: no server for {self.wait:g} seconds "
                    "(client.wait)"
                )
            time.sleep(_RETRY_SECONDS)

    def _settle(self, connection: FleetConnection) -> None:
        """Reply to what the connection before has left open, which the server still waits for."""
        if (message := connection.owed()) is None:
            return
        reply = self._unsent.get(message.metadata.message_id)
        if reply is None:
            connection.waive()  # it is tried once
            reply = cut_off(message)
        try:
            self._send(connection, message, reply, 0.0)
        except RunOverError as error:
            _LOG.warning("%s: %s", self._name, error)

    def _send(
        self, connection: FleetConnection, message: Message, reply: Message, seconds: float
    ) -> None:
        """Send a reply; it is kept while there is no server, and a server may not want it."""
        self._unsent.clear()
        self._unsent[message.metadata.message_id] = reply
        try:
            connection.send(reply, seconds)
        except RejectedError as error:
            self._unsent.clear()
            if reply.has_error():
                raise
            reply = refusal(message, RunError(f"the server does not take its reply: {error}"))
            connection.send(reply, seconds)
        self._unsent.clear()
        if reply.has_error():
            _LOG.warning("%s: %s", self._name, reply.error.reason)

    def _answer_all(self, connection: FleetConnection) -> bool:
        """Answer until the server says farewell; returns whether this process is to end then."""
        pauses = Pauses()
        while True:
            message = connection.receive()
            if message is None:
                pauses.wait()
                continue
            pauses.restart()
            try:
                ended = self._answer_one(connection, message)
            except RunOverError as error:
                connection.waive()
                _LOG.warning("%s: %s", self._name, error)
                continue
            if ended and not self.stay:
                return True

    def _answer_one(self, connection: FleetConnection, message: Message) -> bool:
        """Answer a message; returns whether it was a farewell."""
        desks = self._desks
        run_id, started = message.metadata.run_id, time.perf_counter()
        status = _farewell(message)
        if run_id not in desks:
            try:
                config = connection.run_config(run_id)
                desks.clear()  # a process serves one run at a time
                number = self.client
                if number is None:
                    number = own_number(config, run_id, self.root, message)
                    _LOG.info("this is client %d", number)
                desks[run_id] = Desk(config, run_id, number, self.root, self.data)
            except (LostError, RunOverError):
                raise
            except Exception as error:
                connection.send(refusal(message, error), 0.0)
                if isinstance(error, FedmoeError):
                    raise
                raise RunError(f"cannot take part: {type(error).__name__}: {error}") from error
        reply = desks[run_id].answer(message)
        self._send(connection, message, reply, time.perf_counter() - started)
        if status is not None:
            _LOG.info("%s: the run is over (%s)", self._name, status)
            desks.clear()
        return status is not None

    @property
    def _name(self) -> str:
        return "client" if self.client is None else f"client {self.client}"


def own_table(seat: SeatConfig) -> Path | None:
    """The table that a client was given, whole.

    Raises:
        DataError: there is no such file.
    """
    if seat.data is None:
        return None
    path = Path(seat.data).expanduser().absolute()
    if not path.is_file():
        raise DataError(f"client.data={seat.data}: no such file")
    return path


def _farewell(message: Message) -> str | None:
    try:
        return farewell(message)
    except ValueError:
        return None
