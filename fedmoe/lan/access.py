"""The keys of a deployment, as `fedmoe.keys` makes them: a server's folder, and a client's."""

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from fedmoe.errors import ConfigError
from fedmoe.keys import client_files
from fedmoe.schema.client import SeatConfig

KeyPair = tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]

_ROOT, _CERTIFICATE, _KEY = "ca.crt", "server.pem", "server.key"
_PUBLIC = re.compile(r"client-(\d+)\.pub")
_PRIVATE = re.compile(r"client-\d+")


@dataclass(frozen=True)
class ServerKeys:
    """What a server needs.

    Attributes:
        root_certificates: what its certificate comes from.
        certificate: its own.
        key: that belongs to it.
        clients: public keys of the clients that may join, by number.
    """

    root_certificates: Path
    certificate: Path
    key: Path
    clients: Mapping[int, Path]

    @classmethod
    def of(cls, folder: str) -> Self:
        """Those of a folder.

        Raises:
            ConfigError: one is not there.
        """
        root, certificate, key = (
            _there(folder, name, "runtime.keys") for name in (_ROOT, _CERTIFICATE, _KEY)
        )
        numbers = sorted(
            int(found[1])
            for path in root.parent.iterdir()
            if (found := _PUBLIC.fullmatch(path.name))
        )
        clients = {number: client_files(root.parent, number)[1] for number in numbers}
        if not clients:
            raise ConfigError(f"runtime.keys={folder}: no client has a key there (client-0.pub)")
        return cls(root, certificate, key, clients)

    def known(self) -> frozenset[bytes]:
        """The clients' public keys, as Flower's nodes send them in a header.

        Raises:
            ConfigError: a file holds no such key.
        """
        return frozenset(b64encode(_public_pem(path)) for path in self.clients.values())


@dataclass(frozen=True)
class ClientKeys:
    """What a client needs.

    Attributes:
        root_certificates: what the server's certificate must come from.
        private_key: its own.
    """

    root_certificates: Path
    private_key: Path

    def pair(self) -> KeyPair:
        """The private and the public key.

        Raises:
            ConfigError: the file holds no such key.
        """
        try:
            key = load_ssh_private_key(self.private_key.read_bytes(), None)
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"client.keys: {self.private_key}: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"client.keys: {self.private_key}: must be a key of fedmoe.keys")
        return key, key.public_key()


def client_keys(seat: SeatConfig) -> ClientKeys | None:
    """A client's keys, if it has any.

    Raises:
        ConfigError: one is not there.
    """
    if seat.keys is None:
        return None
    root = _there(seat.keys, _ROOT, "client.keys")
    if seat.partition is not None:
        name = client_files(root.parent, seat.partition)[0].name
        return ClientKeys(root, _there(seat.keys, name, "client.keys"))
    own = [path for path in sorted(root.parent.iterdir()) if _PRIVATE.fullmatch(path.name)]
    if len(own) != 1:
        names = ", ".join(path.name for path in own) or "none"
        raise ConfigError(
            f"client.keys={seat.keys}: must hold one client's key, or say client.partition; "
            f"there: {names}"
        )
    return ClientKeys(root, own[0])


def _public_pem(path: Path) -> bytes:
    try:
        key = load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"runtime.keys: {path}: {error}") from error
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _there(folder: str, name: str, key: str) -> Path:
    path = Path(folder).expanduser().absolute() / name
    if not path.is_file():
        raise ConfigError(f"{key}={folder}: there is no {name}; python -m fedmoe.keys makes it")
    return path
