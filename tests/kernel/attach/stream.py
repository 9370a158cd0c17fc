"""Datagrams from the peer to the node, some of them to a port that the programs close, one after another."""

from __future__ import annotations

import socket
import threading
import time

from tests.kernel.bpf.namespaces import Namespace

NODE_ADDRESS, PEER_ADDRESS = "192.0.2.1", "192.0.2.2"
FORBIDDEN, ALLOWED = 7, 9


class Stream:
    """Sends while it is entered: each time one datagram that must not arrive and one that must, by number."""

    def __init__(self, node: Namespace, peer: Namespace) -> None:
        self._ends = node, peer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self.sent = 0
        self.lost: list[int] = []
        self.leaked: list[int] = []

    def __enter__(self) -> Stream:
        self._thread.start()
        self._ready.wait(10)
        self.more(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        if self._error is not None:
            raise self._error

    def more(self, count: int) -> None:
        """Waits until so many more have been sent."""
        goal, deadline = self.sent + count, time.monotonic() + 60
        while self.sent < goal and self._thread.is_alive():
            assert time.monotonic() < deadline, "the stream stands still"
            time.sleep(0.001)

    def _work(self) -> None:
        try:
            self._run()
        except BaseException as problem:
            self._error = problem
            self._ready.set()

    def _run(self) -> None:
        node, peer = self._ends
        with node.entered():
            closed, opened = (_receiver(port) for port in (FORBIDDEN, ALLOWED))
        with peer.entered():
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        closed.setblocking(False)
        opened.settimeout(2)
        with closed, opened, sender:
            self._ready.set()
            while not self._stop.is_set():
                data = self.sent.to_bytes(4, "big")
                sender.sendto(data, (NODE_ADDRESS, FORBIDDEN))
                sender.sendto(data, (NODE_ADDRESS, ALLOWED))
                try:
                    while opened.recv(16) != data:
                        pass
                except TimeoutError:
                    self.lost.append(self.sent)
                try:
                    self.leaked.append(int.from_bytes(closed.recv(16), "big"))
                except BlockingIOError:
                    pass
                self.sent += 1


def _receiver(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((NODE_ADDRESS, port))
    return made
