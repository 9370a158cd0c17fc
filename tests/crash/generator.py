"""The process that makes the traffic of :mod:`tests.crash.flows`."""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import threading
import time
from bisect import bisect_left
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any

from services.loader.netlink.namespace import enter
from tests.crash.flows import GRACE_SECONDS, Flow

_RECORD = struct.Struct("=IIQ")
_BUFFER = 16 * 1024 * 1024
# Answers to a packet of a fresh flow are waited for as long as its socket is among these.
_OPEN_SOCKETS = 400
_START_SECONDS = 10.0


class Running:
    """One flow under way. Index of every list: the sequence number."""

    def __init__(self, number: int, flow: Flow) -> None:
        self.number = number
        self.flow = flow
        self.times: list[float] = []
        self.arrived = bytearray()
        self.answered = bytearray()
        self.troubles: list[tuple[int, str, float]] = []
        self.incoming: socket.socket

    def next(self) -> int:
        """Notes that a packet is about to be sent; its sequence number."""
        self.arrived.append(0)
        self.answered.append(0)
        self.times.append(time.monotonic())
        return len(self.times) - 1

    def trouble(self, what: str) -> None:
        """Notes what went wrong with the flow as a whole, now."""
        self.troubles.append((max(len(self.times) - 1, 0), what, time.monotonic()))

    def faults(self, now: float) -> list[dict[str, Any]]:
        """Faults of packets that are old enough to be judged."""
        found = list(self.troubles)
        # What is late may still come; what came wrongly did.
        judged = bisect_left(self.times, now - GRACE_SECONDS) if self.flow.passes else len(self.times)
        right = b"\1" * judged if self.flow.passes else bytes(judged)
        if self.arrived[:judged] == right and self.answered[:judged] == right:
            judged = 0
        for number, when in enumerate(self.times[:judged]):
            if not self.flow.passes:
                if self.arrived[number] or self.answered[number]:
                    found.append((number, "wrongly passed", when))
            elif not self.arrived[number]:
                found.append((number, "lost", when))
            elif not self.answered[number]:
                found.append((number, "its answer was lost", when))
            elif self.arrived[number] > 1 or self.answered[number] > 1:
                found.append((number, "duplicated", when))
        return [
            {"flow": self.flow.name, "sequence": number, "what": what, "time": when}
            for number, what, when in found
        ]


class Generator:
    """All flows, one thread each for sending and one for everything that arrives."""

    def __init__(self, flows: list[Flow]) -> None:
        self.running = [Running(number, flow) for number, flow in enumerate(flows)]
        self._epoll = select.epoll()
        self._lock = threading.Lock()
        self._sockets: dict[int, tuple[socket.socket, Running, bool]] = {}
        for each in self.running:
            if each.flow.kind != "tcp":
                each.incoming = _inside(each.flow.destination, partial(_bound, each.flow))
                self._watch(each.incoming, each, True)
        threading.Thread(target=self._receive, daemon=True).start()
        for each in self.running:
            work = self._connection if each.flow.kind == "tcp" else self._datagrams
            threading.Thread(target=work, args=(each,), daemon=True).start()

    def wait_started(self) -> None:
        """Returns when each flow that is to pass has passed once; then counting begins."""
        deadline = time.monotonic() + _START_SECONDS
        for each in self.running:
            while each.flow.passes and not any(each.answered):
                if time.monotonic() > deadline:
                    each.trouble("nothing passes")
                    break
                time.sleep(0.01)

    def report(self) -> dict[str, Any]:
        """What has been seen."""
        now = time.monotonic()
        return {
            "sent": {each.flow.name: len(each.times) for each in self.running},
            "faults": [fault for each in self.running for fault in each.faults(now)],
        }

    # -- sending

    def _datagrams(self, each: Running) -> None:
        with open(each.flow.source) as namespace:
            enter(namespace.fileno())
        destination = (each.flow.address, each.flow.port)
        fresh: deque[socket.socket] = deque()
        family = _family(each.flow)
        outgoing = _udp(family)
        if each.flow.opener:
            outgoing.bind(("", each.flow.port))
            each.incoming.sendto(b"", (each.flow.opener, each.flow.port))
            outgoing.recv(1)
        if each.flow.kind == "udp":
            self._watch(outgoing, each, False)
        for sequence in _paced(each):
            if each.flow.kind == "fresh":
                outgoing = socket.socket(family, socket.SOCK_DGRAM)
                self._watch(outgoing, each, False)
                fresh.append(outgoing)
                if len(fresh) > _OPEN_SOCKETS:
                    self._forget(fresh.popleft())
            try:
                outgoing.sendto(_RECORD.pack(each.number, sequence, 0), destination)
            except OSError as problem:
                each.trouble(f"not sent: {problem}")

    def _connection(self, each: Running) -> None:
        """One TCP connection; what is lost on the way is sent again by TCP, what is wrong ends it."""
        family, bound = _family(each.flow), ("", each.flow.port)
        listener = _inside(each.flow.destination, lambda: socket.create_server(bound, family=family))
        peer = (each.flow.address, each.flow.port)
        outgoing = _inside(each.flow.source, lambda: socket.create_connection(peer, timeout=_START_SECONDS))
        incoming, _ = listener.accept()
        for made in (outgoing, incoming):
            made.setblocking(True)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_stream, args=(each, incoming, each.arrived, True), daemon=True).start()
        threading.Thread(target=_stream, args=(each, outgoing, each.answered, False), daemon=True).start()
        for sequence in _paced(each):
            try:
                outgoing.sendall(_RECORD.pack(each.number, sequence, 0))
            except OSError as problem:
                each.trouble(f"the connection ended: {problem}")
                return

    # -- receiving

    def _watch(self, made: socket.socket, each: Running, incoming: bool) -> None:
        made.setblocking(False)
        with self._lock:
            self._sockets[made.fileno()] = (made, each, incoming)
        self._epoll.register(made.fileno(), select.EPOLLIN)

    def _forget(self, made: socket.socket) -> None:
        with self._lock:
            self._sockets.pop(made.fileno(), None)
        made.close()

    def _receive(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                with self._lock:
                    found = self._sockets.get(descriptor)
                if found is not None:
                    self._take(*found)

    def _take(self, made: socket.socket, each: Running, incoming: bool) -> None:
        for _ in range(64):
            try:
                data, sender = made.recvfrom(64)
            except OSError:
                return
            number, sequence, _ = _RECORD.unpack(data)
            if number != each.number:
                each.trouble(f"got a packet of flow {number}")
            elif incoming:
                _count(each.arrived, sequence)
                if each.flow.opener:
                    _count(each.answered, sequence)
                    continue
                # An answer that cannot be sent is missed by who waits for it.
                with suppress(OSError):
                    made.sendto(data, sender)
            else:
                _count(each.answered, sequence)


def _stream(each: Running, made: socket.socket, seen: bytearray, answer: bool) -> None:
    expected = 0
    held = b""
    while True:
        try:
            data = made.recv(4096)
        except OSError as problem:
            each.trouble(f"the connection ended: {problem}")
            return
        if not data:
            each.trouble("the connection was closed")
            return
        held += data
        whole = len(held) - len(held) % _RECORD.size
        for _, sequence, _ in _RECORD.iter_unpack(held[:whole]):
            if sequence != expected:
                each.trouble(f"the stream has #{sequence} instead of #{expected}")
            expected = sequence + 1
            _count(seen, sequence)
        if answer:
            try:
                made.sendall(held[:whole])
            except OSError as problem:
                each.trouble(f"the connection ended: {problem}")
                return
        held = held[whole:]


def _count(seen: bytearray, sequence: int) -> None:
    seen[sequence] = min(seen[sequence] + 1, 255)


def _paced(each: Running) -> Any:
    """Sequence numbers at the flow's pace; what was missed is not made up for: there are no bursts."""
    due = time.monotonic()
    while True:
        wait = due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        else:
            due = time.monotonic()
        due += each.flow.interval
        yield each.next()


def _family(flow: Flow) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in flow.address else socket.AF_INET


def _udp(family: socket.AddressFamily) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, 33, _BUFFER)  # SO_RCVBUFFORCE
    return made


def _bound(flow: Flow) -> socket.socket:
    made = _udp(_family(flow))
    made.bind(("", flow.port))
    return made


def _inside(path: str, action: Any) -> socket.socket:
    """What the action makes in a namespace; a socket stays there."""
    results: list[Any] = []

    def work() -> None:
        with open(path) as namespace:
            enter(namespace.fileno())
        try:
            results.append(action())
        except OSError as problem:
            results.append(problem)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(results[0], OSError):
        raise results[0]
    made: socket.socket = results[0]
    return made


def main() -> None:
    """The first line of the input has the flows; each further one asks for a report."""
    generator = Generator([Flow(**each) for each in json.loads(sys.stdin.readline())])
    generator.wait_started()
    print(json.dumps(generator.report()), flush=True)
    for _ in sys.stdin:
        print(json.dumps(generator.report()), flush=True)


if __name__ == "__main__":
    main()
