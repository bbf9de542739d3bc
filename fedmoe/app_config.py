"""The experiment of an app that Flower started, from its run config.

`flwr run . --run-config 'overrides="+experiment=insight rounds=5"'` takes the words of the
command line; `config`, a resolved experiment as JSON, is what fedmoe itself sends and wins.
"""

import shlex
from dataclasses import replace
from functools import lru_cache

from flwr.app import Context

from fedmoe.config import from_json, load_config, to_json
from fedmoe.schema import ExperimentConfig, NaturalConfig


def resolve(context: Context, num_clients: int) -> str:
    """The resolved experiment as JSON.

    Args:
        context: of the server app or of a client app.
        num_clients: nodes of the federation: the data are divided among that many.

    Raises:
        ConfigError: a key, type or value that is not allowed.
    """
    run_config = context.run_config
    return _resolve(str(run_config["config"]), str(run_config["overrides"]), num_clients)


@lru_cache(maxsize=4)
def _resolve(config_json: str, overrides: str, num_clients: int) -> str:
    config = from_json(config_json) if config_json else load_config(shlex.split(overrides))
    return to_json(_divided_among(config, num_clients))


def _divided_among(config: ExperimentConfig, num_clients: int) -> ExperimentConfig:
    """A federation of Flower's has as many clients as it has nodes, whatever the YAML says."""
    if isinstance(config.partition, NaturalConfig):
        return config
    return replace(config, partition=replace(config.partition, num_clients=num_clients))
