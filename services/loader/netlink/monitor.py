"""What the kernel says of devices without being asked: gone, changed, stripped of their filters.

The messages are hints. Whoever is told looks at the device itself, so a message that is lost, late or about
something else does no harm; when the kernel says that it had to drop some, everything has to be looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from services.loader.netlink.rtnetlink import RTM_DELLINK, RTM_NEWLINK

_RTM_NEWADDR: Final = 20
_RTM_DELADDR: Final = 21
_RTM_DELQDISC: Final = 37
_RTM_DELTFILTER: Final = 45
# RTMGRP_LINK, RTMGRP_TC, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_GROUPS: Final = 0x1 | 0x8 | 0x10 | 0x100
_RECEIVE_BYTES: Final = 1 << 17
_BUFFER_BYTES: Final = 1 << 21
_SO_RCVBUFFORCE: Final = 33
_HEADER: Final = struct.Struct("=IHHII")
# In struct ifinfomsg, struct ifaddrmsg and struct tcmsg alike the interface index comes after four bytes.
_IFINDEX: Final = struct.Struct("=4xi")


@dataclass(slots=True)
class News:
    """Interface indexes that something happened to. ``all`` is set when messages were lost."""

    gone: set[int] = field(default_factory=set)
    unhooked: set[int] = field(default_factory=set)
    changed: set[int] = field(default_factory=set)
    addresses: bool = False
    all: bool = False

    def __bool__(self) -> bool:
        return bool(self.gone or self.unhooked or self.changed or self.addresses or self.all)


def take(news: News, data: bytes) -> None:
    """Adds what is in one datagram."""
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if size < _HEADER.size + _IFINDEX.size or at + size > len(data):
            return
        (ifindex,) = _IFINDEX.unpack_from(data, at + _HEADER.size)
        if kind == RTM_DELLINK:
            news.gone.add(ifindex)
        elif kind == RTM_NEWLINK:
            news.changed.add(ifindex)
        elif kind in (_RTM_DELQDISC, _RTM_DELTFILTER):
            news.unhooked.add(ifindex)
        elif kind in (_RTM_NEWADDR, _RTM_DELADDR):
            news.addresses = True
        at += (size + 3) & ~3


class DeviceMonitor:
    """Listens in the network namespace of the thread that opens it. Used from one event loop."""

    def __init__(self, *, buffer_bytes: int = _BUFFER_BYTES) -> None:
        self._news = News()
        self._heard = asyncio.Event()
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            socket.NETLINK_ROUTE,
        )
        try:
            with contextlib.suppress(PermissionError):
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
            self._socket.bind((0, _GROUPS))
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Stops listening."""
        self._socket.close()

    async def next(self) -> News:
        """What was heard since the last call; waits until that is something."""
        await self._heard.wait()
        self._heard.clear()
        news, self._news = self._news, News()
        return news

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While within, messages are taken as they come."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket, self._read)
        try:
            yield
        finally:
            loop.remove_reader(self._socket)

    def _read(self) -> None:
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as problem:
                if problem.errno != errno.ENOBUFS:
                    raise
                self._news.all = True
                continue
            take(self._news, data)
        if self._news:
            self._heard.set()
