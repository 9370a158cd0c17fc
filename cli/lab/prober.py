"""Many connections at once between network namespaces, from one thread.

A socket belongs to the namespace it was made in, whoever uses it later. So one thread goes through the
namespaces, makes the listening sockets and starts the connections, and then waits for all of them together:
nothing has to run inside a pod, and thousands of probes take hardly longer than the slowest one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.lab import icmp, netns, sctp

DEFAULT_TIMEOUT = 0.5
# Connections in flight at once; each takes a descriptor, and a listener more where one is needed.
AT_ONCE = 400
_IP_PKTINFO = 8
# struct in_pktinfo: interface index, local address, destination address of the header.
_PKTINFO = struct.Struct("=i4s4s")
# struct in6_pktinfo: local address, interface index.
_PKTINFO6 = struct.Struct("=16si")


@dataclass(frozen=True)
class Attempt:
    """One connection to try: from a namespace to an address and port; the port of ICMP is the type."""

    source: Path
    address: str
    port: int
    protocol: str
    """TCP, UDP, SCTP or ICMP, which over IPv6 is ICMPv6."""
    target: Path | None = None
    """Namespace in which a listener is opened unless something listens there already."""
    source_address: str = ""
    """Address to send from; empty lets routing choose."""

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt. `reached` is true when an answer came back, a refusal included."""

    reached: bool
    how: str
    source_port: int
    seconds: float


def probe_many(attempts: Sequence[Attempt], timeout: float = DEFAULT_TIMEOUT) -> list[Outcome]:
    """Try all `attempts` and return their outcomes in order. `timeout` is how long one may take, in seconds.

    Raises OSError when a namespace cannot be entered.
    """
    outcomes: list[Outcome] = []
    failure: list[BaseException] = []
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Often 1024 of many more that are allowed.
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def work() -> None:
        try:
            for start in range(0, len(attempts), AT_ONCE):
                with _Round(attempts[start : start + AT_ONCE], timeout) as step:
                    outcomes.extend(step.outcomes())
        except BaseException as error:
            failure.append(error)

    # The thread ends in some other namespace than it began in: it must not be one that anybody else uses.
    thread = threading.Thread(target=work, name="prober", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcomes


class _Round:
    """One batch of attempts."""

    def __init__(self, attempts: Sequence[Attempt], timeout: float) -> None:
        self._attempts = attempts
        self._timeout = timeout
        self._selector = selectors.DefaultSelector()
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._selector.close)
        self._results: list[Outcome | None] = [None] * len(attempts)
        self._begun = [0.0] * len(attempts)
        self._ports = [0] * len(attempts)
        self._first_identifier = secrets.randbelow(1 << 16)
        self._waiting: set[int] = set()
        self._again: list[Callable[[], None]] = []

    def __enter__(self) -> _Round:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def outcomes(self) -> list[Outcome]:
        self._listen()
        self._start()
        deadline = time.monotonic() + self._timeout
        resend = time.monotonic() + self._timeout / 2
        while self._waiting and (now := time.monotonic()) < deadline:
            if now >= resend:
                # A datagram may be lost where nothing denies it, for example while a neighbour is looked up.
                resend = deadline
                for send in self._again:
                    send()
            for key, _ in self._selector.select(min(deadline, resend) - now):
                key.data()
        for index in self._waiting:
            self._results[index] = Outcome(
                False, f"no answer within {self._timeout:g} s", self._ports[index], self._timeout
            )
        return [result for result in self._results if result is not None]

    def _listen(self) -> None:
        wanted: dict[Path, set[tuple[socket.AddressFamily, str, int]]] = {}
        for attempt in self._attempts:
            if attempt.target is not None:
                asked = (attempt.family, attempt.protocol, attempt.port)
                wanted.setdefault(attempt.target, set()).add(asked)
        for path, ports in wanted.items():
            netns.enter_path(path)
            raw: dict[socket.AddressFamily, set[int]] = {}
            for family, protocol, port in sorted(ports):
                if protocol == "TCP":
                    self._listen_tcp(family, port)
                elif protocol == "UDP":
                    self._listen_udp(family, port)
                elif protocol == "SCTP":
                    raw.setdefault(family, set()).add(port)
            for family, numbers in raw.items():
                self._listen_sctp(family, numbers)
            self._listen_icmp(path)

    def _socket(self, family: socket.AddressFamily, kind: int, protocol: int = 0) -> socket.socket:
        made = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        self._stack.callback(made.close)
        if family == socket.AF_INET6 and kind != socket.SOCK_RAW:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return made

    def _bind(self, listener: socket.socket, port: int) -> bool:
        try:
            listener.bind(("", port))
            return True
        except OSError as error:
            # Something of the pod's own listens there: that is what is probed then.
            if error.errno != errno.EADDRINUSE:
                raise
            return False

    def _listen_tcp(self, family: socket.AddressFamily, port: int) -> None:
        listener = self._socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not self._bind(listener, port):
            return
        try:
            listener.listen(AT_ONCE)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        self._selector.register(listener, selectors.EVENT_READ, accept)

    def _listen_udp(self, family: socket.AddressFamily, port: int) -> None:
        listener = self._socket(family, socket.SOCK_DGRAM)
        _tell_destination(listener)
        if not self._bind(listener, port):
            return

        def echo() -> None:
            with contextlib.suppress(OSError):
                while True:
                    data, asked, _, peer = listener.recvmsg(256, 64)
                    listener.sendmsg([data], _answering(asked), 0, peer)

        self._selector.register(listener, selectors.EVENT_READ, echo)

    def _listen_sctp(self, family: socket.AddressFamily, ports: set[int]) -> None:
        listener = self._socket(family, socket.SOCK_RAW, sctp.PROTOCOL)
        _tell_destination(listener)

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    data, asked, _, peer = listener.recvmsg(2048, 64)
                    packet = _sctp_packet(family, data, peer)
                    if packet is not None and packet.is_init and packet.destination_port in ports:
                        # A raw socket's address has no port.
                        back = (peer[0], 0, *peer[2:])
                        listener.sendmsg([sctp.init_ack(packet, _tag())], _answering(asked), 0, back)

        self._selector.register(listener, selectors.EVENT_READ, answer)

    def _listen_icmp(self, path: Path) -> None:
        """See messages come in that no kernel answers."""
        coming: dict[socket.AddressFamily, dict[tuple[int, int], int]] = {}
        for index, attempt in enumerate(self._attempts):
            if attempt.protocol == "ICMP" and attempt.target == path and _answer(attempt) is None:
                coming.setdefault(attempt.family, {})[attempt.port, self._identifier(index)] = index
        for family, expected in coming.items():
            self._await_icmp(family, expected, "arrived")

    def _identifier(self, index: int) -> int:
        """Of an attempt's ICMP message: what a port is to others."""
        return self._first_identifier + index & 0xFFFF

    def _await_icmp(
        self, family: socket.AddressFamily, expected: Mapping[tuple[int, int], int], how: str
    ) -> socket.socket:
        """A raw socket; the message of a (type, identifier) ends the attempt that it stands for."""
        receiver = self._socket(family, socket.SOCK_RAW, icmp.PROTOCOL[family])
        icmp.only(receiver, {type for type, _ in expected})

        def receive() -> None:
            with contextlib.suppress(OSError):
                while True:
                    data = receiver.recv(2048)
                    told = icmp.parse(sctp.without_ipv4_header(data) if family == socket.AF_INET else data)
                    if told is not None and told in expected:
                        self._finish(expected[told], True, how)

        self._selector.register(receiver, selectors.EVENT_READ, receive)
        return receiver

    def _start(self) -> None:
        by_source: dict[Path, list[int]] = {}
        for index, attempt in enumerate(self._attempts):
            by_source.setdefault(attempt.source, []).append(index)
        start = {"TCP": self._connect_tcp, "UDP": self._send_udp}
        send_raw = {"SCTP": self._send_sctp, "ICMP": self._send_icmp}
        for path, indices in by_source.items():
            netns.enter_path(path)
            raw: dict[tuple[str, socket.AddressFamily, str], list[int]] = {}
            for index in indices:
                attempt = self._attempts[index]
                if attempt.protocol in send_raw:
                    sender = (attempt.protocol, attempt.family, attempt.source_address)
                    raw.setdefault(sender, []).append(index)
                    continue
                self._begin(index)
                try:
                    start[attempt.protocol](index, attempt)
                except OSError as error:
                    self._finish(index, False, os.strerror(error.errno or 0).lower())
            for (protocol, family, address), members in raw.items():
                send_raw[protocol](family, address, members)

    def _begin(self, index: int) -> None:
        self._begun[index] = time.monotonic()
        self._waiting.add(index)

    def _finish(self, index: int, reached: bool, how: str) -> None:
        if index in self._waiting:
            self._waiting.discard(index)
            seconds = time.monotonic() - self._begun[index]
            self._results[index] = Outcome(reached, how, self._ports[index], seconds)

    def _connect_tcp(self, index: int, attempt: Attempt) -> None:
        client = self._socket(attempt.family, socket.SOCK_STREAM)
        # Close with RST: no TIME_WAIT is left in the pod, and no half-closed connection in the datapath.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if attempt.source_address:
            client.bind((attempt.source_address, 0))
        code = client.connect_ex((attempt.address, attempt.port))
        self._ports[index] = client.getsockname()[1]
        if code == errno.EINPROGRESS:

            def connected() -> None:
                self._selector.unregister(client)
                self._judge(index, client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
                client.close()

            self._selector.register(client, selectors.EVENT_WRITE, connected)
        else:
            self._judge(index, code)

    def _judge(self, index: int, code: int) -> None:
        if code == 0:
            self._finish(index, True, "connected")
        elif code == errno.ECONNREFUSED:
            self._finish(index, True, "refused: nothing listens there")
        else:
            self._finish(index, False, os.strerror(code).lower())

    def _send_udp(self, index: int, attempt: Attempt) -> None:
        client = self._socket(attempt.family, socket.SOCK_DGRAM)
        client.bind((attempt.source_address, 0))
        client.connect((attempt.address, attempt.port))
        self._ports[index] = client.getsockname()[1]
        nonce = secrets.token_bytes(16)

        def send() -> None:
            if index in self._waiting:
                with contextlib.suppress(OSError):
                    client.send(nonce)

        def receive() -> None:
            try:
                if client.recv(256) != nonce:
                    return
            except BlockingIOError:
                return
            except OSError as error:
                self._selector.unregister(client)
                self._judge(index, error.errno or 0)
                return
            self._selector.unregister(client)
            self._finish(index, True, "answered")

        self._selector.register(client, selectors.EVENT_READ, receive)
        send()
        self._again.append(send)

    def _send_sctp(self, family: socket.AddressFamily, source_address: str, indices: list[int]) -> None:
        client = self._socket(family, socket.SOCK_RAW, sctp.PROTOCOL)
        if source_address:
            client.bind((source_address, 0))
        # One raw socket sees every answer of the namespace: a port for each attempt tells them apart.
        first = 32768 + secrets.randbelow(16384)
        by_port = {first + offset: index for offset, index in enumerate(indices)}
        for port, index in by_port.items():
            self._ports[index] = port
            self._begin(index)

        def send() -> None:
            for port, index in by_port.items():
                attempt = self._attempts[index]
                if index in self._waiting:
                    try:
                        client.sendto(sctp.init(port, attempt.port, _tag()), (attempt.address, 0))
                    except OSError as error:
                        self._finish(index, False, os.strerror(error.errno or 0).lower())

        def receive() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet = _sctp_packet(family, *client.recvfrom(2048))
                    if packet is None or packet.is_init or packet.destination_port not in by_port:
                        continue
                    index = by_port[packet.destination_port]
                    attempt = self._attempts[index]
                    if (packet.source, packet.source_port) == (attempt.address, attempt.port):
                        self._finish(index, True, "answered")

        self._selector.register(client, selectors.EVENT_READ, receive)
        send()
        self._again.append(send)

    def _send_icmp(self, family: socket.AddressFamily, source_address: str, indices: list[int]) -> None:
        expected = {}
        for index in indices:
            attempt, identifier = self._attempts[index], self._identifier(index)
            self._ports[index] = identifier
            self._begin(index)
            if (answer := _answer(attempt)) is not None:
                expected[answer, identifier] = index
        client = self._await_icmp(family, expected, "answered")
        if source_address:
            client.bind((source_address, 0))

        def send() -> None:
            for index in indices:
                attempt = self._attempts[index]
                if index in self._waiting:
                    message = icmp.message(family, attempt.port, self._identifier(index))
                    try:
                        client.sendto(message, (attempt.address, 0))
                    except OSError as error:
                        self._finish(index, False, os.strerror(error.errno or 0).lower())

        send()
        self._again.append(send)


def _answer(attempt: Attempt) -> int | None:
    """The type that a kernel answers an ICMP message with; None where nobody does."""
    return icmp.ANSWERS[attempt.family].get(attempt.port)


def _tell_destination(listener: socket.socket) -> None:
    """Have received packets tell which address they came to."""
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        listener.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def _answering(asked: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Control messages that make an answer come from the address that was asked.

    A node has several: routing would choose the one that is nearest to the asker (ip(7), IP_PKTINFO).
    """
    for level, kind, data in asked:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            _, local, _ = _PKTINFO.unpack_from(data)
            return [(level, kind, _PKTINFO.pack(0, local, bytes(4)))]
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            local, _ = _PKTINFO6.unpack_from(data)
            return [(level, kind, _PKTINFO6.pack(local, 0))]
    return []


def _sctp_packet(family: socket.AddressFamily, data: bytes, peer: tuple[Any, ...]) -> sctp.Packet | None:
    return sctp.parse(sctp.without_ipv4_header(data) if family == socket.AF_INET else data, str(peer[0]))


def _tag() -> int:
    return secrets.randbelow(0xFFFFFFFF) + 1
