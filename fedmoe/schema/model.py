"""What each client trains: one class per model."""

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedmoe.schema.types import STRICT, Count, NonNegative, Widths


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
    SoftmaxRouterConfig | PriorRouterConfig | ClientRouterConfig, Field(discriminator="name")
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RouterLossesConfig:
    """Weights of what is added to the loss for the router's sake; 0 leaves one out.

    Attributes:
        balance: of the Switch load-balancing loss (arXiv 2101.03961, eq. 4-6).
        scope: whose load is balanced, the client's own or the federation's.
    """

    balance: NonNegative
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
        top_k = getattr(self.router, "top_k", 1)
        if top_k > self.num_experts:
            raise ValueError(f"top_k must be at most num_experts = {self.num_experts}, got {top_k}")


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
