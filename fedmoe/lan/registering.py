"""Registers clients' keys with a SuperLink: `flwr supernode register`, for many keys at once.

    python -m fedmoe.lan.registering CONNECTION KEY.pub ...

Flower's command takes one key, and a second to start; here one process says it for each, and
prints what the command prints: a JSON object for each key.
"""

import contextlib
import sys
from importlib.metadata import entry_points


def main() -> None:
    """Register until one is refused."""
    connection, *paths = sys.argv[1:]
    (command,) = entry_points(group="console_scripts", name="flwr")
    flwr = command.load()
    for path in paths:
        with contextlib.suppress(SystemExit):
            flwr(
                ["supernode", "register", path, connection, "--format", "json"],
                standalone_mode=False,
            )


if __name__ == "__main__":
    main()
