"""Insights: what clients tell, and what the MetaLearner makes of it.

A policy that is not listed is off: these are the only keys that may be absent.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedmoe.schema.types import STRICT, Count, NonNegative, Positive

PayloadName = Literal[
    "scalars",
    "prototypes",
    "gaussians",
    "spreads",
    "statistics",
    "expert_load",
    "gradient_sketch",
    "logits",
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InsightConfig:
    """What clients tell besides what their strategy needs, and how it is remembered.

    Attributes:
        payloads: besides those that the MetaLearner's policies read; `scalars` asks for the
            numbers alone. With no payload and no policy there are no insights, unless
            `strategy=insight` exchanges nothing else.
        min_count: fewest samples of a client, or of a client's class, of which a payload tells.
        min_count_squares: the same where sums of squares or products are told besides, as in
            `gaussians` and `statistics`: of two samples these and the sum give both away.
        clip: largest L2 norm of a sample's inputs in a sum, longer ones are shortened; `None`
            for any.
        covariance: what `gaussians` tell of how classes spread: each class's and feature's
            squares (`diagonal`), the products of all pairs of features (`pooled` over the
            classes, `class` for each), or a sketch of the pooled ones (`sketch`).
        rank: directions of `spreads`, in no more than there are features; a sketch has 20
            columns more.
        sketch_size: numbers of `gradient_sketch`; of no more than there are features.
        sketch_rounds: it is told in the first so many.
        public: the inputs that `logits` are about: `held_out` takes them out of the data set,
            without their labels, before it is divided among clients; `gaussian` draws them from
            N(0, I), which suits standardised features.
        public_samples: how many there are.
        every: `logits` are told in every so many-th round.
        memory_rounds: rounds whose insights the server keeps.
        memory_bytes: what it keeps them in, at most; the oldest rounds go first.
    """

    payloads: tuple[PayloadName, ...]
    min_count: Count
    min_count_squares: Count
    clip: Positive | None
    covariance: Literal["diagonal", "pooled", "sketch", "class"]
    rank: Count
    sketch_size: Count
    sketch_rounds: Count
    public: Literal["held_out", "gaussian"]
    public_samples: Count
    every: Count
    memory_rounds: Count
    memory_bytes: Annotated[int, Field(ge=1024)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PriorPolicyConfig:
    """An empirical-Bayes prior on linear regressions; its strength is learned."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PrototypesPolicyConfig:
    """Class means of the federation, rehearsed by clients.

    Attributes:
        strength: weight of the rehearsal, against a client's own samples.
    """

    strength: NonNegative


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MetaLearnerConfig:
    """What the MetaLearner makes of insights: one key a policy, `None` for one that is off."""

    prior: PriorPolicyConfig | None = None
    prototypes: PrototypesPolicyConfig | None = None
