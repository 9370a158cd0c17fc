"""Connections between pods, made by threads that live in the pods' namespaces."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from services.loader.netlink.namespace import enter
from tests.kernel.loader.rig import Node, Pod
from tests.patience import patient

CONNECT_SECONDS = patient(1.0)


def connect(
    source: Pod | Node, destination: Pod, port: int, seconds: float = CONNECT_SECONDS, *, ipv6: bool = False
) -> socket.socket:
    """An open connection. Raises TimeoutError or another OSError."""
    address = destination.ipv6 if ipv6 else destination.ipv4
    return source.namespace.run(lambda: socket.create_connection((address, port), timeout=seconds))


def reaches(
    source: Pod | Node, destination: Pod, port: int, seconds: float = CONNECT_SECONDS, *, ipv6: bool = False
) -> bool:
    """Whether a connection is made and something comes back over it."""
    try:
        with connect(source, destination, port, seconds, ipv6=ipv6) as connection:
            return talks(connection)
    except OSError:
        return False


def talks(connection: socket.socket) -> bool:
    """Whether something comes back over a connection."""
    try:
        connection.sendall(b"ping")
        return connection.recv(16) == b"ping"
    except OSError:
        return False


@dataclass
class Stream:
    """Numbered datagrams at a fixed pace, and which of them arrived."""

    sent: int = 0
    received: set[int] = field(default_factory=set)

    @property
    def lost(self) -> int:
        return self.sent - len(self.received)


@contextmanager
def datagrams(source: Pod, destination: Pod, port: int, interval: float = patient(0.005)) -> Iterator[Stream]:
    """Sends UDP datagrams from one pod to another for as long as the block lasts."""
    stream, stop = Stream(), threading.Event()

    def receiver() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("", port))
        made.settimeout(patient(0.5))
        return made

    incoming = destination.namespace.run(receiver)

    def receive() -> None:
        while True:
            try:
                stream.received.add(int(incoming.recv(32)))
            except TimeoutError:
                if stop.is_set():
                    return

    def send() -> None:
        enter(source.namespace.fd)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outgoing:
            while not stop.wait(interval):
                outgoing.sendto(str(stream.sent).encode(), (destination.ipv4, port))
                stream.sent += 1

    threads = [threading.Thread(target=receive), threading.Thread(target=send)]
    for thread in threads:
        thread.start()
    try:
        yield stream
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        incoming.close()
