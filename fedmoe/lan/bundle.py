"""What is submitted to a SuperLink: a Flower app that is nothing but a pointer and a configuration.

The app's code is the installed package on every machine; only values travel.
"""

import json
from pathlib import Path

from fedmoe.config import to_json
from fedmoe.schema import ExperimentConfig

CONNECTION = "fedmoe"  # of Flower's command line, in its config.toml

_APP = """\
[project]
name = "fedmoe-run"
version = "0.1.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedmoe"

[tool.flwr.app.components]
serverapp = "fedmoe.server_app:app"
clientapp = "fedmoe.client_app:app"

[tool.flwr.app.config]
overrides = ""
config = {config}
federation = {federation}
"""


def write_bundle(folder: Path, config: ExperimentConfig, federation: str) -> None:
    """Make the folder that `flwr run` takes.

    Args:
        folder: is made.
        config: the resolved experiment.
        federation: what clients keep their private state under; a resumed run has the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = _APP.format(config=_quoted(to_json(config)), federation=_quoted(federation))
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")


def write_connection(home: Path, address: str, root_certificates: Path | None) -> None:
    """Tell Flower's command line where the SuperLink is.

    Args:
        home: its `FLWR_HOME`.
        address: HOST:PORT.
        root_certificates: what the SuperLink's certificate must come from; `None` for a plain
            connection.
    """
    home.mkdir(parents=True, exist_ok=True)
    security = (
        "insecure = true"
        if root_certificates is None
        else f"root-certificates = {_quoted(str(root_certificates))}"
    )
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n'
        f"[superlink.{CONNECTION}]\naddress = {_quoted(address)}\n{security}\n",
        encoding="utf-8",
    )


def _quoted(text: str) -> str:
    """A TOML string: JSON's escapes are TOML's too, but for characters beyond 16 bits."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
