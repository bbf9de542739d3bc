"""What a client process knows before the first message: configuration, data and model."""

from dataclasses import dataclass
from functools import lru_cache

from torch import nn

from fedmoe.config import from_json
from fedmoe.data import load_federation
from fedmoe.data.federation import FederatedData, Ints, Part
from fedmoe.models import Parameters, build_model, parameters_of
from fedmoe.schema import ExperimentConfig, MoeConfig
from fedmoe.training.pool import Pool, Samples


@dataclass(frozen=True)
class Experiment:
    """One experiment, made once per process and shared by all its clients.

    Attributes:
        config: the resolved configuration.
        data: every client's data.
        pool: the same samples as tensors.
        model: the architecture; its parameters are the initial ones.
        initial: initial parameters, the same for every client since they come from the seed.
    """

    config: ExperimentConfig
    data: FederatedData
    pool: Pool
    model: nn.Module
    initial: Parameters

    @classmethod
    def of(cls, config: ExperimentConfig, data: FederatedData) -> "Experiment":
        """Build the model for the data."""
        model = build_model(config.model, data.task, config.seed)
        return cls(config, data, Pool.of(data.x_ND, data.y_N), model, parameters_of(model))

    def samples(self, part: Part, clients: Ints) -> Samples:
        """Where some clients' samples of one part lie."""
        return Samples(self.pool, *self.data.parts[part].padded(clients))

    @property
    def balance_weight(self) -> float:
        """Weight of the router's load-balancing loss; 0 without a router."""
        return self.config.model.balance_weight if isinstance(self.config.model, MoeConfig) else 0.0


@lru_cache(maxsize=2)
def load_experiment(config_json: str) -> Experiment:
    """The experiment that a run's configuration describes, cached per process.

    Raises:
        ConfigError: the text is not a valid configuration.
        DataError: the data cannot be had or divided as asked.
    """
    config = from_json(config_json)
    return Experiment.of(config, load_federation(config.data, config.partition, config.seed))
