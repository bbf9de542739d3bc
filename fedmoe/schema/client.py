"""A client process of a deployment: what `python -m fedmoe.client` is told."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedmoe.schema.types import STRICT, Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ReachConfig:
    """How the server is reached.

    Attributes:
        server: HOST:PORT.
    """

    server: Annotated[str, Field(pattern=r"^[^\s:/]+:\d{1,5}$|^\[[0-9a-fA-F:.]+\]:\d{1,5}$")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SeatConfig:
    """Which client this is, and how it works.

    Attributes:
        partition: its number, from 0; `None` for that of its key, or one that it is offered, which
            takes `keys` or `data`.
        keys: a folder with `ca.crt` and this client's `client-NUMBER`, as `fedmoe.keys` makes
            them; `None` for a plain connection.
        data: its own table; `None` for its share of the data that the experiment names.
        mode: `inprocess` answers in this process, which stays; `supernode` runs Flower's
            SuperNode, which starts a process for each message.
        state: folder that the client's private state is kept in.
        wait: seconds without a server after which it gives up.
        stay: wait for the next run when one has come to its end.
    """

    partition: Annotated[int, Field(ge=0)] | None
    keys: str | None
    data: str | None
    mode: Literal["inprocess", "supernode"]
    state: Annotated[str, Field(min_length=1)]
    wait: Positive
    stay: bool


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClientProcessConfig:
    """The whole of it."""

    runtime: ReachConfig
    client: SeatConfig
