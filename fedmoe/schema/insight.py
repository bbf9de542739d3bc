"""Insights: what clients tell, and what the MetaLearner makes of it.

A policy that is not listed is off: these are the only keys that may be absent.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedmoe.schema.types import STRICT, Count, Finite, NonNegative, Positive, Share

PayloadName = Literal[
    "scalars",
    "prototypes",
    "traces",
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
            classes, `class` for each), a sketch of the pooled ones (`sketch`), or that of the last
            three but `class` which takes fewest bytes (`auto`).
        rank: directions of `spreads`, in no more than there are features; a sketch has 20
            columns more.
        rehearsed: samples that a client draws from classes' Gaussians in each round.
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
    covariance: Literal["auto", "diagonal", "pooled", "sketch", "class"]
    rank: Count
    rehearsed: Count
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
    """Class means of other clients, rehearsed by each.

    Attributes:
        strength: weight of the rehearsal, against a client's own samples.
        of: whose means a client is told: those of the whole `federation`, or of the clients whose
            classes mean the same as its own (`cluster`).
    """

    strength: NonNegative
    of: Literal["federation", "cluster"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GaussiansPolicyConfig:
    """Gaussians of other clients' classes, of which each rehearses samples.

    Attributes:
        strength: weight of the rehearsal, against a client's own samples.
        of: see `PrototypesPolicyConfig`.
    """

    strength: NonNegative
    of: Literal["federation", "cluster"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExpertAssignmentPolicyConfig:
    """Clusters of clients; a mixture has an expert for each.

    Attributes:
        by: what clients are compared by: their class means (`classes`), or sketches of their
            updates (`sketches`), which any model of any task has.
    """

    by: Literal["classes", "sketches"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StepSizePolicyConfig:
    """ARUBA (arXiv 1906.02717): learning rates from how far clients move and how steep it is.

    Attributes:
        zeta: how many units of squared gradient the configured learning rate weighs; larger
            trusts it longer.
        power: p, by which that weight falls with every client that has told: zeta^2 / (s + 1)^p.
        decay: what is left of earlier rounds' sums after each round; 1 forgets nothing, as in
            the paper.
        per: one learning rate for the `federation`, or one for each `client`.
        limit: the learning rate stays between the configured one by and times this.
    """

    zeta: Positive
    power: NonNegative
    decay: Share
    per: Literal["federation", "client"]
    limit: Annotated[Finite, Field(gt=1.0)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HyperparametersPolicyConfig:
    """FedEx (arXiv 2106.04502): clients try configurations, the better ones become likelier.

    A configuration is one of `learning_rates` with one of `epochs`.

    Attributes:
        learning_rates: factors on `training.learning_rate`.
        epochs: passes over a client's data in place of `training.epochs`; `None` for those.
        schedule: the step of exponentiated gradient, sqrt(2 log c) over: the gradient's largest
            entry (`aggressive`), the root of the sum of its squares so far (`adaptive`), the root
            of the number of rounds (`root`), or 1 (`constant`).
        baseline: discount of earlier rounds' losses in the mean that a loss is compared with; 0
            compares with the round's own.
    """

    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)]
    epochs: Annotated[tuple[Count, ...], Field(min_length=1)] | None
    schedule: Literal["aggressive", "adaptive", "root", "constant"]
    baseline: Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SelectionPolicyConfig:
    """Who is asked to train, where `strategy.fraction_train` is below 1.

    Attributes:
        kind: `oort` (Lai et al., OSDI 2021), `power_of_choice` (arXiv 2010.01243), or `uniform`,
            the control: the draw of a strategy without this policy.
        candidates: of `power_of_choice`: how many are looked at for each that is asked.
        exploration: of `oort`: share of those asked that were never asked before, in round 1.
        exploration_decay: what is left of that share after each round.
        exploration_min: what is always left, while there are such clients.
        clip: of `oort`: quantile of the utilities to which larger ones are cut.
        cut_off: of `oort`: draws among those whose utility is at least this share of the lowest
            of the best.
    """

    kind: Literal["oort", "power_of_choice", "uniform"]
    candidates: Annotated[Finite, Field(ge=1.0)]
    exploration: Annotated[float, Field(ge=0.0, le=1.0)]
    exploration_decay: Share
    exploration_min: Annotated[float, Field(ge=0.0, le=1.0)]
    clip: Share
    cut_off: Share


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistillationPolicyConfig:
    """Soft labels of public inputs (FedMD, arXiv 1910.03581; DS-FL, arXiv 2008.06180).

    Attributes:
        strength: weight of learning them, against a client's own samples.
        samples: of the public inputs, that a client looks at in a round.
        temperature: soft labels are raised to the power of 1 over this, and made to sum to 1
            again; below 1 sharpens.
        of: whose answers are averaged: those of the whole `federation`, or of the clients whose
            classes mean the same as one's own (`cluster`).
    """

    strength: NonNegative
    samples: Count
    temperature: Positive
    of: Literal["federation", "cluster"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExpertBiasPolicyConfig:
    """A bias on a loss-free router's choice (arXiv 2408.15664), moved by the federation's load.

    Attributes:
        rate: u, what the bias is moved by in a round; probabilities are what it is added to.
        rule: by the `sign` of an expert's distance from an even share, as in the paper, or by
            the distance itself, in even shares (`error`).
    """

    rate: Positive
    rule: Literal["sign", "error"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MetaLearnerConfig:
    """What the MetaLearner makes of insights: one key a policy, `None` for one that is off."""

    prior: PriorPolicyConfig | None = None
    prototypes: PrototypesPolicyConfig | None = None
    gaussians: GaussiansPolicyConfig | None = None
    expert_assignment: ExpertAssignmentPolicyConfig | None = None
    step_size: StepSizePolicyConfig | None = None
    hyperparameters: HyperparametersPolicyConfig | None = None
    selection: SelectionPolicyConfig | None = None
    distillation: DistillationPolicyConfig | None = None
    expert_bias: ExpertBiasPolicyConfig | None = None
