"""The meaning of every configuration key: frozen dataclasses that check themselves.

The YAML files in `fedmoe/conf` hold the default values; these classes hold types, ranges and
explanations. A group with several choices (`data`, `partition`, `model`, `strategy`) has one
class per choice, told apart by `name`.
"""

from fedmoe.schema.data import (
    CustomDataConfig,
    DataConfig,
    DigitsConfig,
    FlightsConfig,
    Mnist5kConfig,
    SourceConfig,
    SyntheticClassesConfig,
    SyntheticLinearConfig,
    SyntheticMixtureConfig,
    TableConfig,
)
from fedmoe.schema.experiment import (
    ExperimentConfig,
    MetaLearnerConfig,
    StoppingConfig,
    TrackingConfig,
)
from fedmoe.schema.model import (
    ClientRouterConfig,
    CustomModelConfig,
    LinearConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    PriorRouterConfig,
    RouterConfig,
    RouterLossesConfig,
    SoftmaxRouterConfig,
)
from fedmoe.schema.partition import (
    DirichletConfig,
    IidConfig,
    LabelPermutationConfig,
    NaturalConfig,
    PartitionConfig,
    PartitionerConfig,
    QuantityConfig,
    RotationConfig,
    ShardsConfig,
)
from fedmoe.schema.runtime import (
    InProcessConfig,
    RayConfig,
    RuntimeBase,
    RuntimeConfig,
)
from fedmoe.schema.strategy import (
    CustomStrategyConfig,
    FedAdamConfig,
    FedAvgConfig,
    FedProxConfig,
    InsightConfig,
    LocalConfig,
    StockConfig,
    StrategyBase,
    StrategyConfig,
)
from fedmoe.schema.training import (
    TrainingConfig,
)

__all__ = [
    "ClientRouterConfig",
    "CustomDataConfig",
    "CustomModelConfig",
    "CustomStrategyConfig",
    "DataConfig",
    "DigitsConfig",
    "DirichletConfig",
    "ExperimentConfig",
    "FedAdamConfig",
    "FedAvgConfig",
    "FedProxConfig",
    "FlightsConfig",
    "IidConfig",
    "InProcessConfig",
    "InsightConfig",
    "LabelPermutationConfig",
    "LinearConfig",
    "LocalConfig",
    "MetaLearnerConfig",
    "MlpConfig",
    "Mnist5kConfig",
    "ModelConfig",
    "MoeConfig",
    "NaturalConfig",
    "PartitionConfig",
    "PartitionerConfig",
    "PriorRouterConfig",
    "QuantityConfig",
    "RayConfig",
    "RotationConfig",
    "RouterConfig",
    "RouterLossesConfig",
    "RuntimeBase",
    "RuntimeConfig",
    "ShardsConfig",
    "SoftmaxRouterConfig",
    "SourceConfig",
    "StockConfig",
    "StoppingConfig",
    "StrategyBase",
    "StrategyConfig",
    "SyntheticClassesConfig",
    "SyntheticLinearConfig",
    "SyntheticMixtureConfig",
    "TableConfig",
    "TrackingConfig",
    "TrainingConfig",
]
