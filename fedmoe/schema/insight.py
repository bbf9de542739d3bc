"""Insights: what clients tell, and what the MetaLearner makes of it.

A policy that is not listed is off: these are the only keys that may be absent.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedmoe.schema.types import STRICT, Count, Finite, NonNegative, Positive, Share

PayloadName = Literal["scalars", "prototypes", "statistics"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InsightConfig:
    """What clients tell besides what their strategy needs, and how it is remembered.

    Attributes:
        payloads: besides those that the MetaLearner's policies read; `scalars` asks for the
            numbers alone. With no payload and no policy there are no insights, unless
            `strategy=insight` exchanges nothing else.
        min_count: fewest samples of a client, or of a client's class, of which a sum is told.
        clip: largest L2 norm of a sample's inputs in a sum, longer ones are shortened; `None`
            for any.
        memory_rounds: rounds whose insights the server keeps.
        memory_bytes: what it keeps them in, at most; the oldest rounds go first.
    """

    payloads: tuple[PayloadName, ...]
    min_count: Count
    clip: Positive | None
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
class MetaLearnerConfig:
    """What the MetaLearner makes of insights: one key a policy, `None` for one that is off."""

    prior: PriorPolicyConfig | None = None
    prototypes: PrototypesPolicyConfig | None = None
    step_size: StepSizePolicyConfig | None = None
    hyperparameters: HyperparametersPolicyConfig | None = None
    selection: SelectionPolicyConfig | None = None
