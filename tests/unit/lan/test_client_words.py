"""What a client process is told."""

import pytest

from fedmoe.configuration.client_words import client_config
from fedmoe.errors import ConfigError


def test_the_defaults() -> None:
    config = client_config(["client.partition=0"], {})
    assert config.runtime.server == "127.0.0.1:8000"
    assert (config.client.partition, config.client.mode) == (0, "inprocess")
    assert (config.client.data, config.client.state) == (None, "client-state")
    assert (config.client.wait, config.client.stay) == (3600.0, False)


def test_the_command_line_beats_the_environment() -> None:
    environment = {
        "FED_MOE_CLIENT__PARTITION": "4",
        "FED_MOE_RUNTIME__SERVER": "lab:9000",
        "FED_MOE_TRAINING__EPOCHS": "3",  # for servers
        "FED_MOE_RUNTIME__PORT": "9000",
    }
    config = client_config(["client.partition=5", "client.stay=true"], environment)
    assert (config.client.partition, config.runtime.server) == (5, "lab:9000")
    assert config.client.stay


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("client.partiton=0", "client.partiton=0: no such key; did you mean client.partition?"),
        ("partition", "partition: must be KEY=VALUE"),
        ("client.partition=-1", "client.partition=-1: must be greater than or equal to 0"),
        ("client.partition=x", "client.partition=x: must be a valid integer"),
        ("client.mode=fast", "client.mode=fast: must be 'inprocess' or 'supernode'"),
        ("runtime.server=lab", "runtime.server=lab: must match pattern"),
        ("runtime.server=http://lab:80", "runtime.server=http://lab:80: must match"),
        ("client.stay=2", "client.stay=2: must be a valid boolean"),
        ("client.wait=0", "client.wait=0: must be greater than 0"),
    ],
)
def test_mistakes_are_one_line(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        client_config(["client.partition=0", word], {})
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_a_client_must_say_which_it_is() -> None:
    with pytest.raises(ConfigError, match=r"client\.partition: no value given"):
        client_config([], {})
    for word in ("client.data=mine.csv", "client.keys=mine"):
        assert client_config([word], {}).client.partition is None
