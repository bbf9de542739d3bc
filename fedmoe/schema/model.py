"""What each client trains: one class per model."""

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedmoe.schema.types import STRICT, Count, Finite, NonNegative, Positive, Widths


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LinearConfig:
    """Linear regression, or softmax regression where the target is a class."""

    name: Literal["linear"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MlpConfig:
    """Perceptron with ReLU.

    Attributes:
        hidden: widths of the hidden layers, outermost first.
    """

    name: Literal["mlp"]
    hidden: Annotated[Widths, Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SoftmaxRouterConfig:
    """Softmax top-k.

    Attributes:
        top_k: experts that answer for a sample, 1 to E.
    """

    name: Literal["softmax"]
    top_k: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NoisyRouterConfig:
    """Noisy top-k (arXiv 1701.06538).

    Attributes:
        top_k: experts that answer for a sample, 1 to E.
    """

    name: Literal["noisy"]
    top_k: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SwitchRouterConfig:
    """Switch: one expert per sample, with a capacity while training (arXiv 2101.03961).

    Attributes:
        capacity_factor: room for so many times an even share of the batch.
    """

    name: Literal["switch"]
    capacity_factor: Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExpertChoiceRouterConfig:
    """Experts choose their samples while training (arXiv 2202.09368).

    Attributes:
        capacity_factor: experts per sample on average while training.
        top_k: experts per sample at evaluation, 1 to E.
    """

    name: Literal["expert_choice"]
    capacity_factor: Positive
    top_k: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LossFreeRouterConfig:
    """Softmax top-k whose load is balanced by a bias instead of a loss (arXiv 2408.15664).

    Attributes:
        top_k: experts that answer for a sample, 1 to E.
        rate: what the bias moves by after a round.
    """

    name: Literal["loss_free"]
    top_k: Count
    rate: NonNegative


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RuleRouterConfig:
    """A rule chooses the expert; nothing is learnt.

    Attributes:
        rule: a statistic of the sample's features, or chance, or the sample's place in its batch.
        thresholds: E - 1, rising; a sample goes to the expert whose number is how many of them
            its statistic exceeds. None for `random` and `round_robin`.
    """

    name: Literal["rule"]
    rule: Literal["mean", "variance", "norm", "random", "round_robin"]
    thresholds: tuple[Finite, ...]

    def __post_init__(self) -> None:
        if list(self.thresholds) != sorted(set(self.thresholds)):
            raise ValueError(f"thresholds must rise, got {list(self.thresholds)}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EnsembleRouterConfig:
    """All experts answer with fixed weights.

    Attributes:
        votes: one per expert, in any unit; none are equal votes.
    """

    name: Literal["ensemble"]
    votes: tuple[Positive, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PriorRouterConfig:
    """A shared gate under a prior over the experts that is each client's own.

    Attributes:
        gate: whether there is a gate; without it the prior alone decides (FedEM).
    """

    name: Literal["prior"]
    gate: bool


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClientRouterConfig:
    """One expert per client."""

    name: Literal["client"]


RouterConfig = Annotated[
    SoftmaxRouterConfig
    | NoisyRouterConfig
    | SwitchRouterConfig
    | ExpertChoiceRouterConfig
    | LossFreeRouterConfig
    | RuleRouterConfig
    | EnsembleRouterConfig
    | PriorRouterConfig
    | ClientRouterConfig,
    Field(discriminator="name"),
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RouterLossesConfig:
    """Weights of what is added to the loss for the router's sake; 0 leaves one out.

    Attributes:
        importance: of CV² of the experts' mean probabilities (arXiv 1701.06538, eq. 7).
        load: of CV² of the experts' load (arXiv 1701.06538, eq. 11); for the noisy router.
        balance: of the Switch load-balancing loss (arXiv 2101.03961, eq. 4-6).
        z: of the mean squared log-sum-exp of the router's logits (arXiv 2202.08906, eq. 5).
        scope: whose load is balanced, the client's own or the federation's.
    """

    importance: NonNegative
    load: NonNegative
    balance: NonNegative
    z: NonNegative
    scope: Literal["local", "federation"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MoeConfig:
    """Mixture of experts.

    Attributes:
        num_experts: E.
        hidden: widths of each expert's hidden layers, outermost first; none makes them linear.
        expert: an expert of the user's own, by the name that it was registered under with
            `fedmoe.models.register`; `hidden` is not used then.
        expert_options: keyword arguments of its factory.
        combine: `outputs` (weighted sum) or `probabilities` (classification: mixture of the
            experts' class probabilities).
        router: which experts answer for a sample.
        losses: what is added to the loss for the router's sake.
    """

    name: Literal["moe"]
    num_experts: Count
    hidden: Widths
    expert: str | None
    expert_options: dict[str, Any]
    combine: Literal["outputs", "probabilities"]
    router: RouterConfig
    losses: RouterLossesConfig

    def __post_init__(self) -> None:
        experts, router = self.num_experts, self.router
        top_k = getattr(router, "top_k", 1)
        if top_k > experts:
            raise ValueError(f"top_k must be at most num_experts = {experts}, got {top_k}")
        if isinstance(router, RuleRouterConfig):
            needed = 0 if router.rule in {"random", "round_robin"} else experts - 1
            if len(router.thresholds) != needed:
                raise ValueError(
                    f"{router.rule} over {experts} experts takes {needed} thresholds, "
                    f"got {len(router.thresholds)}"
                )
        if isinstance(router, EnsembleRouterConfig) and len(router.votes) not in {0, experts}:
            raise ValueError(f"votes must be none or {experts}, got {len(router.votes)}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CustomModelConfig:
    """A model of the user's own, registered with `fedmoe.models.register`.

    Attributes:
        factory: the name it was registered under.
        options: keyword arguments of the factory.
    """

    name: Literal["custom"]
    factory: str
    options: dict[str, Any]


ModelConfig = Annotated[
    LinearConfig | MlpConfig | MoeConfig | CustomModelConfig, Field(discriminator="name")
]
