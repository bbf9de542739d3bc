"""What is submitted to a SuperLink."""

import tomllib
from pathlib import Path

from fedmoe.config import from_json, load_config
from fedmoe.lan.bundle import CONNECTION, write_bundle, write_connection
from fedmoe.lan.superlink import superlink_arguments


def test_the_configuration_comes_through_toml_unchanged(tmp_path: Path) -> None:
    odd = 'a "b" \\ c\t\x7f \U0001f600 # é'
    config = load_config(["data=table", "+experiment=insight"], data__target=odd)
    write_bundle(tmp_path, config, "abc")
    app = tomllib.loads((tmp_path / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert from_json(app["config"]["config"]) == config
    assert app["config"]["federation"] == "abc"
    assert app["components"] == {
        "serverapp": "fedmoe.server_app:app", "clientapp": "fedmoe.client_app:app",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]  # no code travels


def test_the_connection_is_plain_or_certified(tmp_path: Path) -> None:
    write_connection(tmp_path, "127.0.0.1:8000", None)
    told = tomllib.loads((tmp_path / "config.toml").read_text())["superlink"]
    assert told[CONNECTION] == {"address": "127.0.0.1:8000", "insecure": True}
    write_connection(tmp_path, "lab:8000", Path("/keys/\x7f\U0001f600.crt"))
    told = tomllib.loads((tmp_path / "config.toml").read_text())["superlink"]
    assert told[CONNECTION] == {
        "address": "lab:8000",
        "root-certificates": "/keys/\x7f\U0001f600.crt",
    }
    assert told["default"] == CONNECTION


def test_a_superlink_is_told_where_to_listen() -> None:
    told = superlink_arguments(9000, None)
    assert told == ["--host", "127.0.0.1", "--port", "9000", "--insecure"]
