"""Keys for a deployment: `python -m fedmoe.keys DIR --names server.lan --clients 3`.

Makes what is not there yet and overwrites nothing, so that the same command with more clients adds
some. The folder then holds

    ca.crt              goes to the server and to every client
    ca.key              signs server certificates; may be kept elsewhere, offline
    server.pem, .key    stay with the server
    client-0, .pub ...  the key goes to client 0 and to nobody else; the server needs the .pub
"""

import argparse
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fedmoe.certificates import (
    Authority,
    certificate_pem,
    checked_addresses,
    checked_names,
    client_key,
    is_signed_by,
    key_pem,
    names_in,
    new_authority,
    new_key,
    new_server,
    public_line,
    read_certificate,
    read_key,
)
from fedmoe.errors import ConfigError
from fedmoe.tracking.files import write_atomic

CA, CA_KEY, SERVER, SERVER_KEY = "ca.crt", "ca.key", "server.pem", "server.key"
SERVER_DAYS = 825
_MOST_CLIENTS = 10_000
_PUBLIC, _FOLDER = 0o644, 0o700


def client_files(directory: Path, client: int) -> tuple[Path, Path]:
    """Where a client's private and public key are."""
    return directory / f"client-{client}", directory / f"client-{client}.pub"


@dataclass
class KeyFolder:
    """A folder of keys, into which what is missing is written.

    Attributes:
        path: the folder, which only its owner may enter.
        written: names of the files that have been written, in order.
    """

    path: Path
    written: list[str] = field(default_factory=list)

    def open(self) -> None:
        """Make the folder, or check the one that is there.

        Raises:
            ConfigError: it is no folder, or others may look into it.
        """
        try:
            self.path.mkdir(mode=_FOLDER, parents=True)
        except FileExistsError:
            if not self.path.is_dir():
                raise ConfigError(f"{self.path}: is a file; keys need a folder") from None
            mode = stat.S_IMODE(self.path.stat().st_mode)
            if mode & 0o077:
                raise ConfigError(
                    f"{self.path}: others may look into it (mode {mode:o}); chmod 700 it, or name "
                    "a new folder"
                ) from None
        self.path.chmod(_FOLDER)  # not what the umask leaves of it

    def authority(self) -> Authority:
        """The CA, made if there is none.

        Raises:
            ConfigError: its files cannot be read, do not belong together, or have expired.
        """
        if not self._has(CA):
            if self._has(CA_KEY):
                raise ConfigError(f"{self.path}: has {CA_KEY} and no {CA}; name a new folder")
            made = new_authority()
            assert made.key is not None
            self._write(CA_KEY, key_pem(made.key), secret=True)
            self._write(CA, certificate_pem(made.certificate), secret=False)
            return made
        certificate = read_certificate(self._read(CA), str(self.path / CA))
        if not self._has(CA_KEY):
            return Authority(certificate, None)
        key = read_key(self._read(CA_KEY), str(self.path / CA_KEY))
        if key.public_key() != certificate.public_key():
            raise ConfigError(f"{self.path / CA_KEY}: does not belong to {CA}")
        return Authority(certificate, key)

    def server(
        self, authority: Authority, names: Sequence[str], addresses: Sequence[str], days: int,
        *, renew: bool,
    ) -> None:  # fmt: skip
        """The server's certificate, made if there is none or if it is to be renewed.

        Raises:
            ConfigError: there is one that does not hold for what was asked, and `renew` is false.
        """
        if not renew and self._has(SERVER):
            if problem := self._problem(authority, {*names, *addresses}):
                raise ConfigError(f"{self.path / SERVER}: {problem}; --force makes another")
            return
        certificate, key = new_server(authority, names, addresses, days)
        self._write(SERVER_KEY, key_pem(key), secret=True)
        self._write(SERVER, certificate_pem(certificate), secret=False)

    def _problem(self, authority: Authority, wanted: set[str]) -> str | None:
        """What is wrong with the server's certificate that is there, or `None`."""
        held = read_certificate(self._read(SERVER), f"{self.path / SERVER} (--force renews it)")
        if lacking := sorted(wanted - names_in(held)):
            return f"is not for {', '.join(lacking)}"
        if not is_signed_by(held, authority):
            return f"is not signed by {CA}"
        if not self._has(SERVER_KEY):
            return f"{SERVER_KEY} is not there"
        key = read_key(self._read(SERVER_KEY), str(self.path / SERVER_KEY))
        return None if key.public_key() == held.public_key() else f"{SERVER_KEY} is another's"

    def client(self, number: int) -> None:
        """A client's pair, made if there is none; a public key alone will do.

        Raises:
            ConfigError: a private key is there that cannot be read.
        """
        private, public = client_files(self.path, number)
        if self._has(public.name):
            return  # the private key may have moved to its client
        if self._has(private.name):
            key = read_key(self._read(private.name), str(private))
        else:
            key = new_key()
            self._write(private.name, client_key(key), secret=True)
        self._write(public.name, _public(key, number), secret=False)

    def _has(self, name: str) -> bool:
        return os.path.lexists(self.path / name)

    def _read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def _write(self, name: str, data: bytes, *, secret: bool) -> None:
        write_atomic(self.path / name, data, private=secret)
        if not secret:
            (self.path / name).chmod(_PUBLIC)  # not what the umask leaves of it
        self.written.append(name)


def _public(key: ec.EllipticCurvePrivateKey, number: int) -> bytes:
    return public_line(key.public_key(), f"client-{number}")


def make_keys(
    directory: Path, *, names: Sequence[str] = (), addresses: Sequence[str] = (), clients: int = 0,
    days: int = SERVER_DAYS, force: bool = False,
) -> list[str]:  # fmt: skip
    """Make what a folder of keys lacks; a second call makes nothing.

    Args:
        directory: the folder; made if it is not there.
        names: host names of the server besides localhost.
        addresses: IP addresses of the server besides those of loopback.
        clients: how many clients there are to be, numbered from 0.
        days: how long a new server certificate holds.
        force: make the server's certificate and key anew; the CA and the clients' keys stay.

    Returns:
        The names of the files that were written.

    Raises:
        ConfigError: an argument that is not allowed, or a folder whose files do not fit.
        OSError: something cannot be written.
    """
    if not 0 <= clients <= _MOST_CLIENTS:
        raise ConfigError(f"--clients {clients}: must be a whole number 0..{_MOST_CLIENTS}")
    if days < 1:
        raise ConfigError(f"--days {days}: must be a whole number of at least 1")
    wanted, numbers = checked_names(names), checked_addresses(addresses)
    folder = KeyFolder(directory)
    folder.open()
    authority = folder.authority()
    folder.server(authority, wanted, numbers, days, renew=force)
    for client in range(clients):
        folder.client(client)
    return folder.written


def main(arguments: Sequence[str] | None = None) -> int:
    """Make keys as the command line says, and say what was made.

    Args:
        arguments: the words after the program's name; those it was started with if `None`.

    Returns:
        The exit code: 0, or 2 if the keys cannot be made as asked.
    """
    asked = _parser().parse_args(arguments)
    try:
        written = make_keys(
            asked.directory, names=asked.names, addresses=asked.addresses, clients=asked.clients,
            days=asked.days, force=asked.force,
        )  # fmt: skip
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{asked.directory}: {', '.join(written) or 'nothing was missing'}\n")
    if CA_KEY in written:
        sys.stdout.write(f"whoever has {CA_KEY} can pose as the server: keep it off the network\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fedmoe.keys", description="Make the keys of a deployment, or add some."
    )
    parser.add_argument("directory", type=Path, help="the folder of the keys")
    parser.add_argument("--names", nargs="*", default=[], help="host names of the server")
    parser.add_argument("--addresses", nargs="*", default=[], help="IP addresses of the server")
    parser.add_argument("--clients", type=int, default=0, help="how many there are to be in all")
    parser.add_argument("--days", type=int, default=SERVER_DAYS, help="of the server certificate")
    parser.add_argument(
        "--force", action="store_true", help="renew the server certificate; all else stays"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
