"""A process that notes what is sent out of the namespace that it is in: `python witness.py`.

It prints a line for each packet that leaves by its only way out, with its destination, and for each
question to a name server, wherever that is said to be. IPv4 alone: without a route a connection
by IPv6 fails at once, and its name would have been looked up before.
"""

import selectors
import socket
import struct
import sys

NOWHERE = "nowhere0"  # where the way out of a lonely room leads
WATCHING, LOOKUP = "watching", "a name is looked up"
_IPV4, _UDP, _DNS = 0x0800, 17, 53


def destination(packet: bytes) -> str:
    """Of an IPv4 packet with UDP or TCP (RFC 791): an address and a port."""
    header = 4 * (packet[0] & 0xF)
    (port,) = struct.unpack_from("!H", packet, header + 2)
    if packet[9] == _UDP and port == _DNS:
        return LOOKUP
    return f"{socket.inet_ntoa(packet[16:20])}:{port}"


def main() -> None:
    """Watch until this process is ended."""
    way_out = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_IPV4))
    way_out.bind((NOWHERE, _IPV4))
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind(("0.0.0.0", _DNS))  # a name server may be said to be on loopback
    with way_out, names, selectors.DefaultSelector() as ready:
        ready.register(way_out, selectors.EVENT_READ, way_out)
        ready.register(names, selectors.EVENT_READ, names)
        _say(WATCHING)
        while True:
            for key, _ in ready.select():
                packet = key.data.recv(2048)
                _say(destination(packet) if key.data is way_out else LOOKUP)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
