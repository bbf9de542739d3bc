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
class MoeConfig:
    """Mixture of experts under a softmax top-k router.

    Attributes:
        num_experts: E.
        top_k: experts that answer for a sample, 1 to E.
        hidden: width of each expert's hidden layer; 0 makes the experts linear.
        balance_weight: weight of the Switch load-balancing loss (arXiv 2101.03961, eq. 4-6).
    """

    name: Literal["moe"]
    num_experts: Count
    top_k: Count
    hidden: Annotated[int, Field(ge=0)]
    balance_weight: NonNegative

    def __post_init__(self) -> None:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k must be at most num_experts = {self.num_experts}, got {self.top_k}"
            )


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
