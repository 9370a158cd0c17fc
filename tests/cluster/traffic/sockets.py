"""Both ends of connections, each made in the namespace that it belongs to and used from here."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import selectors
import socket
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.traffic.places import Place

PATIENCE = 20.0
CHUNK = 1 << 18
_SO_RCVBUFFORCE = 33
# struct linger: on, 0 seconds.
_RESET_AT_CLOSE = b"\1\0\0\0\0\0\0\0"


def connect(
    place: Place, address: str, port: int, kind: int = socket.SOCK_STREAM, *, source_port: int = 0
) -> socket.socket:
    """A connected socket; OSError when it cannot be. A port that is given leaves no TIME_WAIT behind."""

    def work() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        made.settimeout(PATIENCE)
        try:
            if source_port:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if kind == socket.SOCK_STREAM:
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
                made.bind(("", source_port))
            made.connect((address, port))
        except BaseException:
            made.close()
            raise
        return made

    return place.inside(work)


def bound(place: Place, port: int, kind: int, address: str = "::") -> socket.socket:
    """A socket on a port: of all addresses of both families, or of one."""

    def work() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Datagrams of hundreds of senders at once have to find room.
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        made.bind((address, port))
        return made

    return place.inside(work)


def plain(address: tuple[Any, ...]) -> tuple[str, int]:
    """Address and port of a peer, an IPv4 one as such."""
    ip = ipaddress.ip_address(address[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip), int(address[1])


@dataclass
class Echo:
    """Sends back what comes by TCP and UDP, and remembers from whom what came. A context manager."""

    place: Place
    port: int
    address: str = "::"
    received: defaultdict[tuple[str, int], bytearray] = field(
        default_factory=lambda: defaultdict(bytearray), init=False
    )
    """By TCP, by peer."""
    datagrams: list[tuple[str, int]] = field(default_factory=list, init=False)
    """By UDP, the peers."""

    def __enter__(self) -> Echo:
        self._stack = contextlib.ExitStack()
        self._selector = self._stack.enter_context(selectors.DefaultSelector())
        wake, self._wake = socket.socketpair()
        self._stack.callback(wake.close)
        self._selector.register(wake, selectors.EVENT_READ, None)
        tcp = self._stack.enter_context(bound(self.place, self.port, socket.SOCK_STREAM, self.address))
        tcp.listen(1024)
        udp = self._stack.enter_context(bound(self.place, self.port, socket.SOCK_DGRAM, self.address))
        for made, work in ((tcp, self._accept), (udp, self._answer)):
            made.setblocking(False)
            self._selector.register(made, selectors.EVENT_READ, work)
        self._thread = threading.Thread(target=self._work, name="echo", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._thread.join()
        self._stack.close()

    def _work(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                with contextlib.suppress(OSError):
                    key.data(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        made, _ = listener.accept()
        self._stack.callback(made.close)
        self._selector.register(made, selectors.EVENT_READ, self._echo)

    def _echo(self, connection: socket.socket) -> None:
        peer = plain(connection.getpeername())
        data = b""
        try:
            data = connection.recv(CHUNK)
            self.received[peer] += data
            connection.sendall(data)
        finally:
            if not data:
                self._selector.unregister(connection)
                connection.close()

    def _answer(self, listener: socket.socket) -> None:
        while True:
            data, peer = listener.recvfrom(65535)
            self.datagrams.append(plain(peer))
            listener.sendto(data, peer)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Send `data` by a connected socket; the answer: a datagram, or as much of the stream."""
    connection.sendall(data)
    if connection.type == socket.SOCK_DGRAM:
        return connection.recv(65535)
    return receive(connection, len(data))


def receive(connection: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes of a stream; fewer when it ends before."""
    parts = bytearray()
    while len(parts) < count and (part := connection.recv(min(CHUNK, count - len(parts)))):
        parts += part
    return bytes(parts)


def transfer(source: Place, target: Place, family: int, size: int, *, port: int = 7007) -> None:
    """Send `size` bytes by TCP and as many other ones back; all of them have to arrive."""
    block = os.urandom(CHUNK)
    count = max(1, size // len(block))

    def served(listener: socket.socket, told: list[str]) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(PATIENCE)
            told.append(_digest_until_end(connection))
            _send(connection, block[::-1], count)

    with bound(target, port, socket.SOCK_STREAM) as listener:
        listener.listen()
        listener.settimeout(PATIENCE)
        told: list[str] = []
        server = threading.Thread(target=served, args=(listener, told), daemon=True)
        server.start()
        with connect(source, target.addresses[family], port) as connection:
            _send(connection, block, count)
            # From here on the flow is half closed: the other half has to go on.
            answer = _digest_until_end(connection)
        server.join(PATIENCE)
    assert told == [hashlib.sha256(block * count).hexdigest()]
    assert answer == hashlib.sha256(block[::-1] * count).hexdigest()


def _send(connection: socket.socket, block: bytes, count: int) -> None:
    for _ in range(count):
        connection.sendall(block)
    connection.shutdown(socket.SHUT_WR)


def _digest_until_end(connection: socket.socket) -> str:
    digest = hashlib.sha256()
    while part := connection.recv(CHUNK):
        digest.update(part)
    return digest.hexdigest()
