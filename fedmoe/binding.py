"""Where a server may listen for clients, and what that lays open."""

import ipaddress
import re

from fedmoe.errors import ConfigError

_LABELS = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


def check_binding(host: str, *, tls: bool, insecure: bool, client_keys: bool) -> list[str]:
    """Refuse to listen where strangers could read along or join, unless that is asked for.

    Args:
        host: what the server listens on: an address or a name, without a port.
        tls: whether it has a certificate.
        insecure: whether the user has asked for plain connections (`runtime.insecure=true`).
        client_keys: whether only clients with a known key may join.

    Returns:
        One line for each thing that others can reach; nothing on loopback.

    Raises:
        ConfigError: a combination that is not allowed, or a host that is none.
    """
    loopback = is_loopback(host)
    if tls and insecure:
        raise ConfigError("runtime.insecure=true: there is a certificate; leave out one of the two")
    if client_keys and not tls:
        raise ConfigError("clients' keys are of no use without TLS: make keys with fedmoe.keys")
    if loopback:
        return []
    where = f"runtime.host={host}"
    if not tls and not insecure:
        raise ConfigError(
            f"{where}: other machines could read along and join; make keys with fedmoe.keys, or "
            "say runtime.insecure=true"
        )
    warnings = []
    if insecure:
        warnings.append(f"{where}: without TLS, all that is sent can be read and changed underway")
    if not client_keys:
        warnings.append(f"{where}: whoever reaches this port can join as a client")
    return warnings


def is_loopback(host: str) -> bool:
    """Whether nothing but this machine reaches a host.

    Of names, `localhost` alone is believed: what others resolve to may change.

    Raises:
        ConfigError: it is neither an address nor a host name.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # What looks like a number of an address would be one to the system: 127.1, 0x7f.1
        if not _LABELS.fullmatch(host) or host.rpartition(".")[2][:1].isdigit():
            raise ConfigError(
                f"runtime.host={host}: must be an address or a host name, without a port"
            ) from None
        return host.lower() == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback if mapped is None else bool(mapped.is_loopback)
