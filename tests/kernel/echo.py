"""A server that sends back what it hears, in a namespace of a test's."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.kernel.netlink.namespaces import Namespace


@contextmanager
def echo_server(namespace: Namespace, port: int, *, udp: bool = False) -> Iterator[None]:
    """Sends back whatever comes to the port, over either family, until the block ends."""

    def listen() -> socket.socket:
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind(("::", port))
        if not udp:
            made.listen(16)
        return made

    listener = namespace.run(listen)
    peers: list[socket.socket] = []

    def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            peers.append(connection)
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    def answer() -> None:
        while True:
            try:
                data, sender = listener.recvfrom(65536)
                if not data:
                    return
                listener.sendto(data, sender)
            except OSError:
                continue

    thread = threading.Thread(target=answer if udp else accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        if udp:
            namespace.run(lambda: _stop(port))
        else:
            # Closing alone does not wake a thread that waits in accept().
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
        for peer in peers:
            peer.close()


def _stop(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
        last.sendto(b"", ("127.0.0.1", port))
