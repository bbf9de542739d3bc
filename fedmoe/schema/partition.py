"""How samples are dealt to clients: one class per partitioner."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedmoe.schema.types import STRICT, Count, Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PartitionerConfig:
    """What every partitioner has.

    Attributes:
        min_samples: fewest samples a client may have; 0 permits empty clients.
    """

    min_samples: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class IidConfig(PartitionerConfig):
    """Every client an equal random share."""

    name: Literal["iid"]
    num_clients: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DirichletConfig(PartitionerConfig):
    """Label skew: each class is spread over the clients by Dirichlet(alpha) (arXiv 1909.06335).

    Attributes:
        alpha: concentration; 0.1 gives clients of one or two classes, 100 nearly IID ones.
    """

    name: Literal["dirichlet"]
    num_clients: Count
    alpha: Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ShardsConfig(PartitionerConfig):
    """Pathological label skew: samples sorted by label, dealt in shards (arXiv 1602.05629).

    Attributes:
        shards_per_client: how many shards, and so about how many labels, a client gets.
    """

    name: Literal["shards"]
    num_clients: Count
    shards_per_client: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QuantityConfig(PartitionerConfig):
    """Quantity skew: client sizes by Dirichlet(alpha), labels IID (arXiv 2102.02079)."""

    name: Literal["quantity"]
    num_clients: Count
    alpha: Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RotationConfig(PartitionerConfig):
    """IID shares; the images of group g are rotated by 360 g / num_groups degrees (IFCA)."""

    name: Literal["rotation"]
    num_clients: Count
    num_groups: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LabelPermutationConfig(PartitionerConfig):
    """IID shares; each group of clients names the classes by a permutation of its own."""

    name: Literal["label_permutation"]
    num_clients: Count
    num_groups: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NaturalConfig(PartitionerConfig):
    """One client per value of the source's client column."""

    name: Literal["natural"]


PartitionConfig = Annotated[
    IidConfig
    | DirichletConfig
    | ShardsConfig
    | QuantityConfig
    | RotationConfig
    | LabelPermutationConfig
    | NaturalConfig,
    Field(discriminator="name"),
]
