"""Where clients run, and which of their replies count."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedmoe.schema.types import STRICT, Count, NonNegative, Positive, Share


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RuntimeBase:
    """What every runtime has.

    Attributes:
        round_timeout: seconds to wait for a phase's replies: those of a round's training, and as
            long again for its evaluation.
        min_replies: fewest good replies in a round; with fewer the round is void.
        stragglers: what becomes of clients that take long, where clients are other machines: `wait`
            for all until the timeout; `cut_off` those that are not there `cut_off_grace` seconds
            after `cut_off_share` of the clients asked were, and at least `min_replies`; `late` cuts
            off too, and merges the reply into the round in which it comes.
        cut_off_share: see there.
        cut_off_grace: see there.
        late_rounds: how many rounds late a reply may be; until then its client, which is still at
            work, is not asked again.
        late_exponent: a in (1 + s)^-a, the weight of a reply that is s rounds late, as against one
            that is not.
        max_reply_bytes: a larger reply is refused.
        max_examples: a reply that claims more examples is refused.
        max_update_ratio: an update is refused that is longer than so many times the median of the
            round's updates, once there are 5; `None` for no such limit.
        max_update_norm: an update is refused whose L2 norm is larger; `None` for no such limit.
        max_strikes: a client is not asked any more in this run after so many refused replies;
            `None` for ever again.
        shard_size: most clients answered at once; bounds memory where the strategy is mergeable.
    """

    round_timeout: Positive
    min_replies: Count
    stragglers: Literal["wait", "cut_off", "late"]
    cut_off_share: Share
    cut_off_grace: NonNegative
    late_rounds: Count
    late_exponent: NonNegative
    max_reply_bytes: Count
    max_examples: Count
    max_update_ratio: Annotated[float, Field(ge=1)] | None
    max_update_norm: Positive | None
    max_strikes: Count | None
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
        control_port: a port of loopback for Flower's own commands, which may start runs; `None`
            for any that is free.
        min_clients: how many clients are waited for; the data are divided among as many, unless
            the configuration is told another number of them.
        wait: seconds that they may take to come.
        keys: the folder that `fedmoe.keys` made: connections are encrypted, and only clients whose
            keys are there may join; `None` for plain connections and anybody.
        insecure: whether to listen without keys where other machines can reach it.
        evaluate_with_training: whether a round is evaluated in the same exchange as the next one
            is trained, where the strategy permits.
    """

    name: Literal["lan"]
    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65535)]
    control_port: Annotated[int, Field(ge=1, le=65535)] | None
    min_clients: Count
    wait: Positive
    keys: str | None
    insecure: bool
    evaluate_with_training: bool


RuntimeConfig = Annotated[InProcessConfig | RayConfig | LanConfig, Field(discriminator="name")]
