"""What a deployment's keys are made of: a CA, the server's certificate, and clients' key pairs.

All keys are P-384. The CA and the server speak X.509 in PEM; a client's pair is in OpenSSH's
format, the one that Flower 1.41 reads, and must be on a NIST curve.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmoe.errors import ConfigError

ALWAYS = ("localhost",), ("127.0.0.1", "::1")  # names and addresses of every server certificate
CA_DAYS = 3650
_CLOCK_SKEW = timedelta(hours=1)  # machines of one LAN may disagree by so much about the time
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
_LONGEST_NAME = 253


@dataclass(frozen=True)
class Authority:
    """A certificate authority of one federation.

    Attributes:
        certificate: its own, self-signed.
        key: with which it signs; `None` where that is kept elsewhere.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | None


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key from the operating system's random numbers."""
    return ec.generate_private_key(ec.SECP384R1())


def new_authority() -> Authority:
    """A CA that may sign servers' certificates and no further CAs, for `CA_DAYS` days."""
    key = new_key()
    builder = (
        _builder("fedmoe CA", key.public_key(), CA_DAYS)
        .issuer_name(_name("fedmoe CA"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return Authority(builder.sign(key, hashes.SHA384()), key)


def new_server(
    authority: Authority, names: Sequence[str], addresses: Sequence[str], days: int
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A server's certificate for names and addresses, and its key.

    Args:
        authority: with its key.
        names: host names, as `checked_names` returns them.
        addresses: IP addresses, as `checked_addresses` returns them.
        days: how long it holds; no longer than the CA's own.

    Raises:
        ConfigError: the CA's key is not there, or its certificate does not hold as long.
    """
    if authority.key is None:
        raise ConfigError("the CA's key is not here: a server certificate cannot be signed")
    left = (authority.certificate.not_valid_after_utc - datetime.now(UTC)).days
    if days > left:
        raise ConfigError(f"--days {days}: the CA's own certificate holds for {left} more days")
    key, issuer = new_key(), authority.certificate
    wanted: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    wanted += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    builder = (
        _builder("fedmoe server", key.public_key(), days)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(wanted), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
    )
    return builder.sign(authority.key, hashes.SHA384()), key


def checked_names(names: Sequence[str]) -> list[str]:
    """Host names for a certificate, `localhost` among them, in lower case and each once.

    Raises:
        ConfigError: something that is no host name.
    """
    for name in names:
        labels = name.lower().split(".")
        if _is_address(name):
            raise ConfigError(f"--names {name}: is an address; say --addresses {name}")
        if len(name) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, labels)):
            raise ConfigError(f"--names {name}: must be a host name such as server.lan")
    return list(dict.fromkeys([*ALWAYS[0], *map(str.lower, names)]))


def checked_addresses(addresses: Sequence[str]) -> list[str]:
    """IP addresses for a certificate, those of loopback among them, each once.

    Raises:
        ConfigError: something that is no address of one machine.
    """
    for address in addresses:
        if not _is_address(address):
            raise ConfigError(f"--addresses {address}: must be an IP address such as 192.168.1.10")
        if ipaddress.ip_address(address).is_unspecified:
            raise ConfigError(f"--addresses {address}: is nobody's; say the machine's own")
    return list(dict.fromkeys(str(ipaddress.ip_address(a)) for a in (*ALWAYS[1], *addresses)))


def names_in(certificate: x509.Certificate) -> set[str]:
    """The names and addresses that a certificate is for."""
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(one.value) for one in held}


def is_signed_by(certificate: x509.Certificate, authority: Authority) -> bool:
    """Whether a CA has signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key of a CA or a server as text, in the clear."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def client_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A client's private key as OpenSSH writes it, in the clear: nobody is there to type."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def public_line(key: ec.EllipticCurvePublicKey, comment: str) -> bytes:
    """A client's public key as one line of OpenSSH's."""
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return line + f" {comment}\n".encode()


def read_key(pem: bytes, of: str) -> ec.EllipticCurvePrivateKey:
    """A private key in PKCS8 or OpenSSH's format.

    Raises:
        ConfigError: it is none on an elliptic curve; names `of`, and nothing of what was read.
    """
    openssh = b"OPENSSH" in pem.partition(b"\n")[0]
    load = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
    try:
        key = load(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{of}: not a private key on an elliptic curve, without a password")
    return key


def read_certificate(pem: bytes, of: str) -> x509.Certificate:
    """A certificate.

    Raises:
        ConfigError: it is none, or has expired.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigError(f"{of}: not a certificate") from error
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise ConfigError(f"{of}: expired on {certificate.not_valid_after_utc:%Y-%m-%d}")
    return certificate


def _builder(name: str, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates,
        crl_sign=signs_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
