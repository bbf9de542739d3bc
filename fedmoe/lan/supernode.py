"""The fallback of a client: Flower's own SuperNode, with nothing of Flower that is private."""

import logging
import os
import sys
import time
from pathlib import Path

from fedmoe.errors import ConfigError, RunError
from fedmoe.lan.access import client_keys
from fedmoe.lan.node import own_table
from fedmoe.lan.processes import Family
from fedmoe.lan.signals import asked_to_end, raise_as
from fedmoe.lan.superlink import free_port, program
from fedmoe.schema.client import ClientProcessConfig

_LOG = logging.getLogger("fedmoe.lan.SuperNode")
_STEP = 0.1
# In a node's configuration: the folder for private state, and the client's own table.
STATE, DATA = "client-state", "client-data"


def supernode_arguments(config: ClientProcessConfig, root: Path, port: int) -> list[str]:
    """What `flower-supernode` is told: whom it belongs to, and how to be secure.

    Args:
        config: of the client.
        root: folder for private state.
        port: of its own API, on loopback.

    Raises:
        ConfigError: it has no number, and Flower's SuperNode cannot take one.
    """
    if config.client.partition is None:
        raise ConfigError("client.partition: no value given; client.mode=supernode needs it")
    node = f"partition-id={config.client.partition} {STATE}={_quoted(str(root))}"
    if (data := own_table(config.client)) is not None:
        node += f" {DATA}={_quoted(str(data))}"
    keys = client_keys(config.client)
    secure = ["--insecure"] if keys is None else [
        "--root-certificates", str(keys.root_certificates),
        "--auth-supernode-private-key", str(keys.private_key),
    ]  # fmt: skip
    return [
        "--superlink",
        config.runtime.server,
        *secure,
        "--port",
        str(port),
        "--node-config",
        node,
    ]


def run_supernode(config: ClientProcessConfig, root: Path) -> None:
    """Run a SuperNode until this process is asked to end; it outlives the runs of a server.

    Raises:
        RunError: the SuperNode ended by itself.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM.
    """
    log = root / "supernode.log"
    environment = {
        "FLWR_HOME": str(root / ".flower"),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    with asked_to_end() as asked, Family(environment, log) as family:
        arguments = supernode_arguments(config, root, free_port())
        process = family.start([program("flower-supernode"), *arguments])
        _LOG.info("client %d: a SuperNode, see %s", config.client.partition, log)
        while asked() is None:
            if (code := process.poll()) is not None:
                raise RunError(f"the SuperNode ended with {code}; see {log}")
            time.sleep(_STEP)
    raise_as(asked)


def _quoted(text: str) -> str:
    """A TOML string, as Flower reads a node's configuration."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
