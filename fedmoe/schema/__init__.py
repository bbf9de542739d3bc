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
    CustomModelConfig,
    LinearConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
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
    DittoConfig,
    FedAdamConfig,
    FedAvgConfig,
    FedAvgFineTuneConfig,
    FedProtoConfig,
    FedProxConfig,
    FedRepConfig,
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
    "CustomDataConfig",
    "CustomModelConfig",
    "CustomStrategyConfig",
    "DataConfig",
    "DigitsConfig",
    "DirichletConfig",
    "DittoConfig",
    "ExperimentConfig",
    "FedAdamConfig",
    "FedAvgConfig",
    "FedAvgFineTuneConfig",
    "FedProtoConfig",
    "FedProxConfig",
    "FedRepConfig",
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
    "QuantityConfig",
    "RayConfig",
    "RotationConfig",
    "RuntimeBase",
    "RuntimeConfig",
    "ShardsConfig",
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
