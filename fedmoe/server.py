"""The server of a federation of separate processes: `python -m fedmoe.server WORDS`.

The words are those of `fedmoe-simulate`; `runtime=lan` goes without saying. Clients are started
with `python -m fedmoe.client`.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from fedmoe import simulate
from fedmoe.heap import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line says.

    Args:
        argv: words and flags without the program's name; by default the process's own.

    Returns:
        The exit code: 0 done, 2 a wrong configuration, 130 Ctrl-C, 143 SIGTERM, else a failed
        run.
    """
    return simulate.main(["runtime=lan", *(sys.argv[1:] if argv is None else argv)])


def command() -> NoReturn:
    """Run `main` as a process of its own and end it."""
    leave(main())


if __name__ == "__main__":
    command()
