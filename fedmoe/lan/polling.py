"""Sending and receiving over a grid that is to be asked for replies."""

import time
from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from fedmoe.lan.pauses import Pauses


def polled(grid: Grid, messages: Iterable[Message], timeout: float | None) -> list[Message]:
    """`Grid.send_and_receive` by `push_messages` and `pull_messages`.

    Args:
        grid: passes messages on.
        messages: to send; one that is given no id could not be sent.
        timeout: seconds; `None` waits for all replies.
    """
    waiting = {number for number in grid.push_messages(messages) if number}
    deadline = None if timeout is None else time.monotonic() + timeout
    replies: list[Message] = []
    pauses = Pauses()
    while waiting and (deadline is None or time.monotonic() < deadline):
        found = list(grid.pull_messages(waiting))
        waiting -= {reply.metadata.reply_to_message_id for reply in found}
        replies += found
        if found:
            pauses.restart()
        elif waiting:
            pauses.wait()
    return replies
