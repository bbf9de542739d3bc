"""Among how many clients the data are divided, where the configuration is not the one to say."""

import dataclasses

from fedmoe.config import validate
from fedmoe.schema import ExperimentConfig


def divided_among(config: ExperimentConfig, num_clients: int) -> ExperimentConfig:
    """The same data for another number of clients; natural ones are as many as the data have.

    Raises:
        ConfigError: not a number of clients.
    """
    for key in ("partition", "data"):
        if any(field.name == "num_clients" for field in dataclasses.fields(getattr(config, key))):
            table = dataclasses.asdict(config)
            table[key]["num_clients"] = num_clients
            return validate(table)
    return config
