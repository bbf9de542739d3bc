import pytest

from fedmoe.binding import check_binding, is_loopback
from fedmoe.errors import ConfigError

LOOPBACK = ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LocalHost", "::ffff:127.0.0.1"]
OPEN = ["0.0.0.0", "::", "192.168.1.10", "fe80::1", "server.lan", "localhost.lan", "::ffff:1.2.3.4"]
READ = "can be read and changed underway"
JOIN = "can join as a client"
KEYS = "clients' keys are of no use without TLS"
BOTH = "leave out one of the two"
REFUSED = "say runtime.insecure=true"

# tls, insecure, clients' keys; on loopback, elsewhere: an error or the warnings
TABLE: list[tuple[bool, bool, bool, str | list[str], str | list[str]]] = [
    (False, False, False, [], REFUSED),
    (False, False, True, KEYS, KEYS),
    (False, True, False, [], [READ, JOIN]),
    (False, True, True, KEYS, KEYS),
    (True, False, False, [], [JOIN]),
    (True, False, True, [], []),
    (True, True, False, BOTH, BOTH),
    (True, True, True, BOTH, BOTH),
]


@pytest.mark.parametrize(("tls", "insecure", "client_keys", "inside", "outside"), TABLE)
@pytest.mark.parametrize("host", LOOPBACK + OPEN)
def test_what_is_allowed(
    host: str,
    tls: bool,
    insecure: bool,
    client_keys: bool,
    inside: str | list[str],
    outside: str | list[str],
) -> None:
    expected = inside if host in LOOPBACK else outside
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected) as caught:
            check_binding(host, tls=tls, insecure=insecure, client_keys=client_keys)
        assert "\n" not in str(caught.value)
        return
    warnings = check_binding(host, tls=tls, insecure=insecure, client_keys=client_keys)
    assert len(warnings) == len(expected)
    for warning, part in zip(warnings, expected, strict=True):
        assert warning.startswith(f"runtime.host={host}: ")
        assert part in warning


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "0.0.0.0:8000",
        "localhost:80",
        "http://a",
        "[::1]",
        "a b",
        "127.1",
        "0x7f.1",
        "1",
        "*",
    ],
)
def test_what_is_no_host(host: str) -> None:
    with pytest.raises(ConfigError, match="must be an address or a host name, without a port"):
        is_loopback(host)
    with pytest.raises(ConfigError, match="must be an address"):
        check_binding(host, tls=True, insecure=False, client_keys=True)
