"""The experiment of an app that Flower started, from its run config.

`flwr run . --run-config 'overrides="+experiment=insight rounds=5"'` takes the words of the
command line; `config`, a resolved experiment as JSON, is what fedmoe itself sends and wins.
"""

import shlex
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from fedmoe.config import from_json, load_config, to_json
from fedmoe.configuration.dividing import divided_among
from fedmoe.schema import LanConfig, NaturalConfig


def resolve(run_config: Mapping[str, Any], num_clients: int | None = None) -> str:
    """The resolved experiment as JSON.

    Args:
        run_config: of the server app or of a client app.
        num_clients: nodes of the federation: the data are divided among that many, unless
            clients come and go (`runtime=lan`); `None` leaves that as configured.

    Raises:
        ConfigError: a key, type or value that is not allowed.
    """
    return _resolve(str(run_config["config"]), str(run_config["overrides"]), num_clients)


@lru_cache(maxsize=4)
def _resolve(config_json: str, overrides: str, num_clients: int | None) -> str:
    config = from_json(config_json) if config_json else load_config(shlex.split(overrides))
    # A federation of Flower's has as many clients as it has nodes, whatever the YAML says; only
    # natural clients are as many as the data have.
    fixed = isinstance(config.partition, NaturalConfig) or isinstance(config.runtime, LanConfig)
    if num_clients is not None and not fixed:
        config = divided_among(config, num_clients)
    return to_json(config)
