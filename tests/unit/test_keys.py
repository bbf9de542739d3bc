"""Keys of a deployment, judged by those who read them: TLS, and Flower's own loaders."""

import argparse
import ssl
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, uses_nist_ec_curve
from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

from fedmoe.certificates import (
    certificate_pem,
    checked_addresses,
    checked_names,
    key_pem,
    new_authority,
    new_server,
)
from fedmoe.errors import ConfigError
from fedmoe.keys import client_files, main, make_keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "keys"
    make_keys(folder, names=["Host.lan"], addresses=["192.168.1.10", "fd00::1"], clients=2)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shake_hands(server: Path, authority: Path, host: str) -> str | None:
    """A TLS handshake of a server that uses one folder with a client that trusts another's CA."""
    inner = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inner.load_cert_chain(server / "server.pem", server / "server.key")
    outer = ssl.create_default_context(cafile=str(authority / "ca.crt"))
    outer.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        outer.wrap_bio(down, up, server_hostname=host),
        inner.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[0].version()


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "::1", "host.lan", "192.168.1.10", "fd00::1"]
)
def test_clients_trust_the_server_by_all_its_names(keys: Path, host: str) -> None:
    assert shake_hands(keys, keys, host) == "TLSv1.3"


@pytest.mark.parametrize("host", ["other.lan", "192.168.1.11", "x.host.lan", "0.0.0.0"])
def test_a_wrong_name_is_refused(keys: Path, host: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
        shake_hands(keys, keys, host)


def test_a_wrong_ca_is_refused(keys: Path, tmp_path: Path) -> None:
    make_keys(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        shake_hands(keys, tmp_path / "other", "localhost")


def test_a_server_cannot_sign_for_another(keys: Path, tmp_path: Path) -> None:
    """Nobody who has only the server's key can make a certificate that clients trust."""
    server = x509.load_pem_x509_certificate((keys / "server.pem").read_bytes())
    basic = server.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert not basic.value.ca
    authority = x509.load_pem_x509_certificate((keys / "ca.crt").read_bytes())
    own = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert own.critical
    assert own.value == x509.BasicConstraints(ca=True, path_length=0)


def test_lifetimes(keys: Path, tmp_path: Path) -> None:
    def days(folder: Path, name: str) -> int:
        held = x509.load_pem_x509_certificate((folder / name).read_bytes())
        return (held.not_valid_after_utc - held.not_valid_before_utc).days

    assert (days(keys, "ca.crt"), days(keys, "server.pem")) == (3650, 825)
    make_keys(tmp_path / "brief", days=7)
    assert (days(tmp_path / "brief", "ca.crt"), days(tmp_path / "brief", "server.pem")) == (3650, 7)
    with pytest.raises(ConfigError, match="--days 4000: the CA's own certificate holds for 36"):
        make_keys(tmp_path / "brief", days=4000, force=True)


def test_only_the_owner_may_read_secrets(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedmoe.keys", str(tmp_path / "keys"), "--clients", "1"]
    ran = subprocess.run(
        ["sh", "-c", 'umask 000; exec "$@"', "sh", *command], capture_output=True, check=True
    )
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "keys").iterdir()}
    assert modes == {
        "ca.crt": 0o644, "ca.key": 0o600, "server.pem": 0o644, "server.key": 0o600,
        "client-0": 0o600, "client-0.pub": 0o644,
    }  # fmt: skip
    said = ran.stdout + ran.stderr
    for secret in ("ca.key", "server.key", "client-0"):
        for line in (tmp_path / "keys" / secret).read_bytes().splitlines():
            assert line not in said
    assert b"client-0.pub" in said


def test_keys_load_in_flowers_own_loaders(keys: Path) -> None:
    for client in range(2):
        private, public = client_files(keys, client)
        asked = argparse.Namespace(
            auth_supernode_private_key=str(private), auth_supernode_public_key=None
        )
        loaded = _try_setup_client_authentication(asked)
        assert loaded is not None
        assert isinstance(loaded[0].curve, ec.SECP384R1)
        registered = bytes_to_public_key(try_load_public_key(public))
        assert registered == loaded[1]
        assert uses_nist_ec_curve(registered)


def test_adding_clients_keeps_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    first = make_keys(folder, names=["a.lan"], clients=3)
    before = contents(folder)
    assert set(first) == set(before)
    assert make_keys(folder, clients=5) == ["client-3", "client-3.pub", "client-4", "client-4.pub"]
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert make_keys(folder, names=["a.lan"], clients=2) == []
    assert contents(folder) == after
    assert len({after[f"client-{n}"] for n in range(5)}) == 5


def test_keys_that_have_moved_are_not_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    make_keys(folder, clients=1)
    (folder / "client-0").unlink()
    (folder / "ca.key").unlink()
    assert make_keys(folder, clients=2) == ["client-1", "client-1.pub"]
    with pytest.raises(ConfigError, match="the CA's key is not here"):
        make_keys(folder, force=True)


def test_a_public_key_that_is_lost_is_that_of_the_private_one(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    make_keys(folder, clients=1)
    before = contents(folder)
    (folder / "client-0.pub").unlink()
    assert make_keys(folder, clients=1) == ["client-0.pub"]
    assert contents(folder) == before


def test_force_renews_the_server_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    make_keys(folder, clients=1)
    before = contents(folder)
    with pytest.raises(ConfigError, match=r"server\.pem: is not for 10\.0\.0\.1, b\.lan; --force"):
        make_keys(folder, names=["b.lan"], addresses=["10.0.0.1"])
    assert contents(folder) == before
    assert make_keys(folder, names=["b.lan"], force=True) == ["server.key", "server.pem"]
    after = contents(folder)
    assert {n for n in before if before[n] != after[n]} == {"server.key", "server.pem"}
    assert shake_hands(folder, folder, "b.lan")


def test_pairs_that_do_not_belong_together_are_refused(tmp_path: Path, keys: Path) -> None:
    folder = tmp_path / "keys"
    make_keys(folder)
    good = contents(folder)
    for name, problem in [
        ("ca.key", r"ca\.key: does not belong to ca\.crt"),
        ("server.key", r"server\.key is another's; --force makes another"),
        ("ca.crt", r"ca\.key: does not belong"),
        ("server.pem", r"is not signed by ca\.crt"),
    ]:
        (folder / name).write_bytes((keys / name).read_bytes())
        with pytest.raises(ConfigError, match=problem):
            make_keys(folder)
        (folder / name).write_bytes(good[name])
    (folder / "ca.key").write_bytes(b"-----BEGIN secret")
    with pytest.raises(ConfigError, match="not a private key") as caught:
        make_keys(folder)
    assert "secret" not in str(caught.value)
    (folder / "ca.crt").unlink()
    with pytest.raises(ConfigError, match=r"has ca\.key and no ca\.crt"):
        make_keys(folder)


def test_an_expired_server_certificate_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "keys"
    make_keys(folder)
    monkeypatch.setattr("fedmoe.certificates._CLOCK_SKEW", timedelta(days=2))
    certificate, key = new_server(new_authority(), ["localhost"], [], days=-1)
    (folder / "server.pem").write_bytes(certificate_pem(certificate))
    (folder / "server.key").write_bytes(key_pem(key))
    with pytest.raises(ConfigError, match=r"server\.pem \(--force renews it\): expired on "):
        make_keys(folder)


BAD: list[tuple[list[str], str]] = [
    (["--names", "10.0.0.1"], "--names 10.0.0.1: is an address; say --addresses 10.0.0.1"),
    (["--names", "a b"], "--names a b: must be a host name"),
    (["--names", "*.lan"], "--names *.lan: must be a host name"),
    (["--names", "-a"], "expected"),
    (["--names", "a" * 64], "must be a host name"),
    (["--addresses", "host.lan"], "--addresses host.lan: must be an IP address"),
    (["--addresses", "0.0.0.0"], "--addresses 0.0.0.0: is nobody's"),
    (["--clients", "-1"], "--clients -1: must be a whole number 0..10000"),
    (["--clients", "many"], "invalid int value: 'many'"),
    (["--days", "0"], "--days 0: must be a whole number of at least 1"),
]


@pytest.mark.parametrize(("words", "problem"), BAD)
def test_bad_words_make_nothing(
    words: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    try:
        code: int | str | None = main([str(folder), *words])
    except SystemExit as stopped:  # argparse's own
        code = stopped.code
    assert code == 2
    if problem != "expected":
        assert problem in capsys.readouterr().err
    assert not folder.exists()


def test_a_folder_that_others_may_look_into_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o755)
    assert main([str(tmp_path)]) == 2
    assert "others may look into it (mode 755); chmod 700 it" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "file")]) == 2
    assert "is a file; keys need a folder" in capsys.readouterr().err


def test_names_are_those_of_loopback_and_each_once() -> None:
    assert checked_names(["B.lan", "b.lan", "localhost"]) == ["localhost", "b.lan"]
    assert checked_addresses(["FD00::0:1", "127.0.0.1"]) == ["127.0.0.1", "::1", "fd00::1"]
