"""Federations as on a LAN, in one process and without a network."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from flwr.app import Message
from polled_grid import PolledGrid

from fedmoe.config import to_json
from fedmoe.lan.desk import Desk
from fedmoe.lan.packing import pack, unpack
from fedmoe.lan.roster import Roster
from fedmoe.messages.seams import (
    ensure_task_identity,
    readdressed,
    set_message_id,
    with_content,
)
from fedmoe.schema import ExperimentConfig
from fedmoe.serving import Server

FIRST = 700  # Flower's node of client k is 700 + k


class ServerDiedError(Exception):
    """What a test kills a server with."""


class DeskGrid(PolledGrid):
    """Flower's side of a federation whose clients keep their state on disk.

    Attributes:
        desks: the clients.
        sent: contents of all messages, as they went out.
        spoil: changes a reply, given the message; `None` loses it.
    """

    def __init__(self, desks: list[Desk]) -> None:
        ensure_task_identity()
        self.desks, self.sent = desks, list[Message]()
        self.spoil: Callable[[Message, Message], Message | None] = lambda message, reply: reply
        self._replies: dict[str, Message] = {}

    def get_node_ids(self) -> list[int]:
        return list(range(FIRST, FIRST + len(self.desks)))

    def _push(self, message: Message) -> str:
        number = f"m{len(self.sent)}"
        asked = with_content(
            readdressed(message, message.metadata.dst_node_id), pack(message.content)
        )
        set_message_id(asked, number)
        plain = with_content(asked, unpack(asked.content))
        self.sent.append(plain)
        reply = self.desks[message.metadata.dst_node_id - FIRST].answer(asked)
        if reply.has_content():
            reply = with_content(reply, unpack(reply.content))
        came = self.spoil(plain, reply)
        if came is not None:
            self._replies[number] = came
        return number

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(number) for number in message_ids if number in self._replies]


def serve(
    config: ExperimentConfig, folder: Path, *, resume: bool = False
) -> tuple[Server, DeskGrid]:
    """A server and its clients, about to run.

    Args:
        config: of `runtime=lan`.
        folder: for the run directory, and the clients' state.
        resume: whether to go on with what is there.
    """
    if resume:
        config = replace(config, resume=str(folder / "run"))
    clients = config.data.num_clients  # type: ignore[union-attr]
    run = {"config": to_json(config), "federation": "f"}
    grid = DeskGrid([Desk(run, 1, number, folder / "state") for number in range(clients)])
    roster = Roster(grid, resumed=resume)
    roster.wait_for(clients, 5.0, clients)
    return Server(config=config, grid=roster, run_dir=folder / "run"), grid
