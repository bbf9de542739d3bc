"""Where clients run, and which of their replies count."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedmoe.schema.types import STRICT, Count, NonNegative, Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RuntimeBase:
    """What every runtime has.

    Attributes:
        timeout: seconds to wait for a phase's replies.
        min_replies: fewest good replies in a round; with fewer the round is void.
        max_reply_bytes: a larger reply is refused.
        max_examples: a reply that claims more examples is refused.
        shard_size: most clients answered at once; bounds memory where the strategy is mergeable.
    """

    timeout: Positive
    min_replies: Count
    max_reply_bytes: Count
    max_examples: Count
    shard_size: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InProcessConfig(RuntimeBase):
    """All clients in this process."""

    name: Literal["inprocess"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RayConfig(RuntimeBase):
    """Clients in Ray actors, on this machine or on a cluster (extra `ray`).

    Attributes:
        address: `local` starts Ray on this machine for the time of the run; `auto`, or
            HOST:PORT, joins a cluster that is running.
        workers: actors that share the clients; `None` for one per CPU (or per GPU, if they want
            any) of the cluster.
        cpus_per_worker: CPUs that Ray sets aside for each.
        gpus_per_worker: GPUs for each, fractions allowed; 0 trains on CPUs.
        max_restarts: how often a worker that was lost is started again in one run.
    """

    name: Literal["ray"]
    address: Annotated[str, Field(min_length=1)]
    workers: Count | None
    cpus_per_worker: Positive
    gpus_per_worker: NonNegative
    max_restarts: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LanConfig(RuntimeBase):
    """Clients in processes of their own, on this machine or on others (`fedmoe.server`).

    Attributes:
        host: the address that the server listens at.
        port: and its port.
        min_clients: how many clients are waited for; the data are divided among as many, unless
            the configuration is told another number of them.
        wait: seconds that they may take to come.
    """

    name: Literal["lan"]
    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65535)]
    min_clients: Count
    wait: Positive


RuntimeConfig = Annotated[InProcessConfig | RayConfig | LanConfig, Field(discriminator="name")]
