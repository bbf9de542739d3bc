"""A client of a federation of separate processes: `python -m fedmoe.client WORDS`.

    python -m fedmoe.client runtime.server=HOST:8000 client.partition=0

The words are those of `fedmoe/conf/client.yaml`; `FED_MOE_CLIENT__PARTITION=0` is another way to
say `client.partition=0`.
"""

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fedmoe.configuration.client_words import client_config
from fedmoe.errors import FedmoeError, RunError
from fedmoe.heap import leave, quick_start
from fedmoe.offline import be_quiet
from fedmoe.schema.client import ClientProcessConfig

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Take part in a federation until its run is over.

    Args:
        argv: words, without the program's name; by default the process's own.

    Returns:
        The exit code: 0 done, 2 a wrong configuration or wrong data, 130 Ctrl-C, 143 SIGTERM,
        else a failure.
    """
    be_quiet()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write((Path(__file__).parent / "conf" / "client.yaml").read_text())
        return 0
    before = signal.signal(signal.SIGTERM, _end)
    try:
        _take_part(client_config(arguments))
    except KeyboardInterrupt:
        sys.stderr.write("fedmoe: interrupted\n")
        return _INTERRUPTED
    except FedmoeError as error:
        sys.stderr.write(f"fedmoe: error: {' '.join(str(error).split())}\n")
        return error.exit_code
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def command() -> NoReturn:
    """Run `main` as a process of its own and end it."""
    leave(main())


def _take_part(config: ClientProcessConfig) -> None:
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("httpx", "httpcore", "flwr"):
        logging.getLogger(noisy).setLevel("WARNING")
    seat = config.client
    root = Path(seat.state).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"client.state={seat.state}: {error}") from error
    # Late: they import torch and Flower, which a mistake need not wait for.
    if seat.mode == "supernode":
        from fedmoe.lan.supernode import run_supernode

        run_supernode(config, root)
        return
    with quick_start():
        from fedmoe.lan.access import client_keys
        from fedmoe.lan.fleet import Access
        from fedmoe.lan.node import Node, own_table

    address, keys = config.runtime.server, client_keys(seat)
    access = Access(address=address)
    if keys is not None:
        access = Access(address=address, root_certificates=keys.root_certificates, keys=keys.pair())
    Node(
        access=access,
        client=seat.partition, root=root, data=own_table(seat), wait=seat.wait, stay=seat.stay,
    ).run()  # fmt: skip


def _end(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    command()
