"""All of the node's own addresses in its ipcache, as the host's.

The programs are configured with two addresses of each family. A node may have more, of other devices or added
later: to pods they are the node as well, under the same policies.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_interface, ip_network
from typing import Final, Protocol

from services.chassis.logs import get_logger
from services.loader.host_policy import HOST
from services.loader.netlink import rtnetlink
from services.loader.streams.backoff import Backoff

# Also asked without being told: notifications are lost when there are too many.
POLL_SECONDS: Final = 30.0

_GROUPS: Final = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_RECEIVE_BYTES: Final = 65536
_LIMITED_BROADCAST: Final = "255.255.255.255"

_log = get_logger(__name__)


class LocalAddresses(Protocol):
    """Takes addresses of this node."""

    def put_local(self, addresses: Iterable[str], identity: int, identity_revision: int) -> None: ...

    def remove_local(self, addresses: Iterable[str]) -> None: ...


class HostAddresses:
    """Follows the addresses of the node's devices. ``read`` returns all of them, ADDRESS/PREFIX each."""

    def __init__(
        self,
        ipcache: LocalAddresses,
        pod_cidrs: Sequence[str],
        read: Callable[[], list[str]] | None = None,
    ) -> None:
        self._ipcache = ipcache
        self._pods = [ip_network(cidr) for cidr in pod_cidrs]
        self._read = read or read_addresses
        self._held: frozenset[str] = frozenset()
        self._changed = asyncio.Event()

    def follow(self, pod_cidrs: Sequence[str]) -> None:
        """These are the node's pod CIDRs from now on."""
        self._pods = [ip_network(cidr) for cidr in pod_cidrs]
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        changed = self._changed
        backoff = Backoff(first=0.5)
        with _notifications(changed):
            while True:
                changed.clear()
                try:
                    self.take(await asyncio.to_thread(self._read))
                except OSError as problem:
                    _log.warning("addresses.unknown", error=str(problem))
                    await asyncio.sleep(backoff.next())
                    continue
                backoff.reset()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), POLL_SECONDS)

    def take(self, addresses: Iterable[str]) -> None:
        """These are the addresses of the node's devices now."""
        wanted = frozenset(self._own(addresses))
        gone, new = self._held - wanted, wanted - self._held
        self._held = wanted
        if gone:
            self._ipcache.remove_local(sorted(gone))
        if new:
            self._ipcache.put_local(sorted(new), HOST, 0)

    def _own(self, addresses: Iterable[str]) -> Iterable[str]:
        for text in addresses:
            interface = ip_interface(text)
            address: IPv4Address | IPv6Address = interface.ip
            # What is said of pods is said by their endpoints; the others mean something on their link only.
            if address.is_loopback or address.is_link_local or any(address in pods for pods in self._pods):
                continue
            yield str(address)
            if isinstance(interface, IPv4Interface):
                # What is for all on the link is for the node too.
                yield _LIMITED_BROADCAST
                if interface.network.prefixlen <= 30:
                    yield str(interface.network.broadcast_address)


def read_addresses() -> list[str]:
    """Every address of the network namespace's devices. Raises OSError."""
    with rtnetlink.RouteSocket() as netlink:
        answers = netlink.request(
            [rtnetlink.dump_addresses(socket.AF_INET), rtnetlink.dump_addresses(socket.AF_INET6)]
        )
    return [text for answer in answers for _, text in rtnetlink.addresses(answer)]


@contextlib.contextmanager
def _notifications(changed: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    ) as listening:
        listening.bind((0, _GROUPS))

        def heard() -> None:
            # What it says is not of interest: all addresses are read anew.
            with contextlib.suppress(OSError):
                while listening.recv(_RECEIVE_BYTES):
                    pass
            changed.set()

        loop.add_reader(listening, heard)
        try:
            yield
        finally:
            loop.remove_reader(listening)
