"""Whoever has a namespace and addresses talks to others: TCP, UDP, ping."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.kernel.netlink.namespaces import Namespace
from tests.patience import patient

# For what is to come; and for what is not, which has to be waited for each time.
PATIENCE = patient(10.0)
SILENCE = patient(0.7)


@dataclass(frozen=True)
class Place:
    """A namespace with an address of each family."""

    namespace: Namespace
    ipv4: str
    ipv6: str

    def address(self, *, ipv6: bool) -> str:
        return self.ipv6 if ipv6 else self.ipv4


def blocked(does: Callable[..., bool], *who: object, **how: object) -> bool:
    """Whether it does not come about for a while."""
    return not does(*who, seconds=SILENCE, **how)


def connect(
    source: Place, destination: Place, port: int, *, ipv6: bool = False, seconds: float = PATIENCE
) -> socket.socket:
    """An open connection. Raises TimeoutError or another OSError."""
    address = destination.address(ipv6=ipv6)
    return source.namespace.run(lambda: socket.create_connection((address, port), timeout=seconds))


def talks(connection: socket.socket, *, seconds: float = PATIENCE) -> bool:
    """Whether something that is sent comes back over a connection in time."""
    return carries(connection, connection, seconds=seconds)


def carries(sender: socket.socket, receiver: socket.socket, *, seconds: float = PATIENCE) -> bool:
    """Whether what one end sends arrives at the other in time."""
    receiver.settimeout(seconds)
    try:
        sender.sendall(b"hello")
        return receiver.recv(65536).endswith(b"hello")
    except OSError:
        return False


def reaches(
    source: Place, destination: Place, port: int, *, ipv6: bool = False, seconds: float = PATIENCE
) -> bool:
    """Whether a TCP connection is made and something comes back over it."""
    try:
        with connect(source, destination, port, ipv6=ipv6, seconds=seconds) as connection:
            return talks(connection, seconds=seconds)
    except OSError:
        return False


def asks(
    source: Place,
    destination: Place,
    port: int,
    *,
    size: int = 16,
    ipv6: bool = False,
    seconds: float = PATIENCE,
) -> bool:
    """Whether a UDP datagram of so many bytes comes back."""

    def ask() -> bool:
        with socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(seconds)
            asking.connect((destination.address(ipv6=ipv6), port))
            asking.send(bytes(size))
            try:
                return len(asking.recv(65536)) == size
            except OSError:
                return False

    return source.namespace.run(ask)


def pings(source: Place, destination: Place, *, ipv6: bool = False, seconds: float = PATIENCE) -> bool:
    """Whether one ping is answered."""
    command = ["ping", "-n", "-c", "1", "-W", str(seconds), destination.address(ipv6=ipv6)]
    inside = ["nsenter", f"--net={source.namespace.path}", *command]
    return subprocess.run(inside, capture_output=True, check=False).returncode == 0


@contextmanager
def accepted(
    server: Place, client: Place, *, port: int = 7000, ipv6: bool = False
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection with both its ends, the server's first, on a port where nothing else is served. The
    server goes on listening.
    """

    def listen() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.settimeout(PATIENCE)
        made.bind((server.address(ipv6=ipv6), port))
        made.listen()
        return made

    with server.namespace.run(listen) as listener, connect(client, server, port, ipv6=ipv6) as end:
        connection, _ = listener.accept()
        with connection:
            yield connection, end
