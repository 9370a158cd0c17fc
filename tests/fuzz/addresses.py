"""The addresses, ports and subjects that a fuzzed cluster knows; everything else is made by mutation."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

NODE4, NODE6 = "172.31.0.1", "fd00:31::1"
ROUTER4, ROUTER6 = "10.244.1.1", "fd00:10:244:1::1"
GATEWAY4, GATEWAY6 = "172.31.0.254", "fd00:31::fe"
ENDPOINTS = 7
SUBJECTS = (1, 2, 3)
PORTS = (80, 81, 443, 1024, 8080, 65535, 0)


def packed(text: str) -> bytes:
    """An address as network bytes."""
    return ip_address(text).packed


@dataclass(frozen=True, slots=True)
class Family:
    """One family's addresses. ``local`` are for endpoints, ``prefixes`` for the ipcache's shorter entries."""

    number: int
    node: bytes
    router: bytes
    local: tuple[bytes, ...]
    remote: tuple[bytes, ...]
    remote_node: bytes
    remote_router: bytes
    other: tuple[bytes, ...]
    strange: tuple[bytes, ...]
    prefixes: tuple[tuple[bytes, int], ...]

    @property
    def bits(self) -> int:
        """Of an address."""
        return len(self.node) * 8

    def everybody(self) -> tuple[bytes, ...]:
        """All but the strange ones."""
        infrastructure = (self.node, self.router, self.remote_node, self.remote_router)
        return self.local + self.remote + infrastructure + self.other


def _many(*texts: str) -> tuple[bytes, ...]:
    return tuple(packed(text) for text in texts)


def _prefixes(*texts: str) -> tuple[tuple[bytes, int], ...]:
    parts = (text.split("/") for text in texts)
    return tuple((packed(network), int(length)) for network, length in parts)


V4 = Family(
    number=4,
    node=packed(NODE4),
    router=packed(ROUTER4),
    local=tuple(packed(f"10.244.1.{10 + i}") for i in range(ENDPOINTS)),
    remote=_many("10.244.2.10", "10.244.2.11", "10.244.3.10"),
    remote_node=packed("172.31.0.2"),
    remote_router=packed("10.244.2.1"),
    other=_many("198.51.100.7", "198.51.100.130", "203.0.113.9", "192.0.2.1"),
    strange=_many(
        "0.0.0.0", "255.255.255.255", "224.0.0.1", "127.0.0.1", "169.254.1.1", "240.0.0.1", GATEWAY4,
    ),
    prefixes=_prefixes(
        "0.0.0.0/0", "10.0.0.0/8", "10.244.2.0/24", "10.244.3.0/24", "10.244.2.8/29", "198.51.100.0/24",
        "198.51.100.128/25", "198.51.100.130/31", "203.0.113.0/24", "192.0.0.0/13", "10.244.1.0/24",
    ),
)  # fmt: skip

V6 = Family(
    number=6,
    node=packed(NODE6),
    router=packed(ROUTER6),
    local=tuple(packed(f"fd00:10:244:1::{10 + i:x}") for i in range(ENDPOINTS)),
    remote=_many("fd00:10:244:2::a", "fd00:10:244:2::b", "fd00:10:244:3::a"),
    remote_node=packed("fd00:31::2"),
    remote_router=packed("fd00:10:244:2::1"),
    other=_many("2001:db8::7", "2001:db8::8000:7", "2001:db8:1::9", "2001:db8:2::1"),
    strange=_many("::", "ff02::1", "ff02::1:ff00:a", "::1", "fe80::1", "fe80::ff:fe00:a", GATEWAY6),
    prefixes=_prefixes(
        "::/0", "fd00:10::/32", "fd00:10:244:2::/64", "fd00:10:244:3::/64", "fd00:10:244:2::8/125",
        "2001:db8::/64", "2001:db8::8000:0/97", "2001:db8::8000:6/127", "2001:db8:1::/48", "2001:db8::/33",
        "fd00:10:244:1::/64",
    ),
)  # fmt: skip

FAMILIES = {4: V4, 6: V6}
TUNNELS = _many("172.31.0.2", "172.31.0.3")
