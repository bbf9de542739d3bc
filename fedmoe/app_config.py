"""The experiment of an app that Flower started, from its run config.

`flwr run . --run-config 'overrides="+experiment=insight rounds=5"'` takes the words of the
command line; `config`, a resolved experiment as JSON, is what fedmoe itself sends and wins.
"""

import shlex
from functools import lru_cache

from flwr.app import Context

from fedmoe.config import from_json, load_config, to_json
from fedmoe.configuration.parts import divided_among
from fedmoe.schema import NaturalConfig


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
    # A federation of Flower's has as many clients as it has nodes, whatever the YAML says; only
    # natural clients are as many as the data have.
    if not isinstance(config.partition, NaturalConfig):
        config = divided_among(config, num_clients)
    return to_json(config)
