"""Masquerading as the loader sees it: the entries of bpf/lib/nat_map.h, and which have had their time.

An entry lives as long as the conntrack entry of the flow that it translates. Everything here is pure but for
:func:`collect`, which reads and writes maps.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from services.loader.bpf.layout import Struct
from services.loader.bpf.maps import Map

NAT4_KEY = Struct(
    "nat4_key", (("addr", "8s"), ("port", "4s"), ("protocol", "B"), ("kind", "B"), ("pad", "xx"))
)
NAT4_VALUE = Struct("nat4_value", (("addr", "4s"), ("port", "2s"), ("pad", "xx"), ("created", "I")))
NAT6_KEY = Struct(
    "nat6_key", (("addr", "32s"), ("port", "4s"), ("protocol", "B"), ("kind", "B"), ("pad", "xx"))
)
NAT6_VALUE = Struct("nat6_value", (("addr", "16s"), ("port", "2s"), ("pad", "xx"), ("created", "I")))
NAT_EXCLUDE4_KEY = Struct("nat_exclude4_key", (("prefixlen", "I"), ("addr", "4s")))
NAT_EXCLUDE6_KEY = Struct("nat_exclude6_key", (("prefixlen", "I"), ("addr", "16s")))

STRUCTS = (NAT4_KEY, NAT4_VALUE, NAT6_KEY, NAT6_VALUE, NAT_EXCLUDE4_KEY, NAT_EXCLUDE6_KEY)

# The value of an exclusion: present is all that counts.
EXCLUDED = b"\1\0\0\0"

_KEYS = {4: NAT4_KEY.codec(), 16: NAT6_KEY.codec()}
_VALUES = {4: NAT4_VALUE.codec(), 16: NAT6_VALUE.codec()}
_EXCLUDE = {4: NAT_EXCLUDE4_KEY.codec(), 6: NAT_EXCLUDE6_KEY.codec()}
_FAMILIES = {4: socket.AF_INET, 16: socket.AF_INET6}
# Bytes of an address by the size of a key; NAT keys and conntrack keys are built alike.
_ADDRESS = {16: 4, 40: 16}
_ECHO = (1, 58)  # ICMP, ICMPv6

# A flow as both tables can name it: two ends (address and port, as in the keys) and the protocol. Of an echo
# the end that asks comes first, of any other flow the smaller one.
Flow: TypeAlias = tuple[bytes, bytes, int]


class Kind(IntEnum):
    """What an entry leads to: ORIGINAL from the pod's flow to its port on the node, REVERSE back."""

    ORIGINAL = 0
    REVERSE = 1


@dataclass(frozen=True, slots=True)
class NatEntry:
    """An entry of nat4 or nat6. ``port`` 0 to 65535, of an ICMP echo its identifier.

    ``source`` and ``destination`` are of the packets that it is looked up for; ``to`` is what their source
    (ORIGINAL) or destination (REVERSE) is changed to. ``created`` counts 2^30 ns of CLOCK_MONOTONIC.
    """

    kind: Kind
    protocol: int
    source: str
    source_port: int
    destination: str
    destination_port: int
    to: str
    to_port: int
    created: int

    @classmethod
    def unpack(cls, key: bytes, value: bytes) -> NatEntry:
        """From the bytes of ``struct nat4_key`` or ``nat6_key`` and its value."""
        size = _ADDRESS[len(key)]
        addresses, ports, protocol, kind = _KEYS[size].unpack(key)
        to, to_port, created = _VALUES[size].unpack(value)
        family = _FAMILIES[size]
        return cls(
            Kind(kind), protocol,
            socket.inet_ntop(family, addresses[:size]), int.from_bytes(ports[:2], "big"),
            socket.inet_ntop(family, addresses[size:]), int.from_bytes(ports[2:], "big"),
            socket.inet_ntop(family, to), int.from_bytes(to_port, "big"), created,
        )  # fmt: skip

    def pack(self) -> tuple[bytes, bytes]:
        """Key and value. Raises ValueError for an address that is none."""
        try:
            source, destination, to = (
                ipaddress.ip_address(each).packed for each in (self.source, self.destination, self.to)
            )
        except ValueError as error:
            raise ValueError(f"not an address of a NAT entry: {error}") from None
        ports = self.source_port.to_bytes(2, "big") + self.destination_port.to_bytes(2, "big")
        size = len(source)
        return (
            _KEYS[size].pack(source + destination, ports, self.protocol, self.kind),
            _VALUES[size].pack(to, self.to_port.to_bytes(2, "big"), self.created),
        )


@dataclass(frozen=True, slots=True)
class NatStats:
    """Entries, not flows: what a round of garbage collection saw and removed."""

    seen: int
    removed: int


def exclusion_key(prefix: str) -> tuple[int, bytes]:
    """(4 or 6, the key in nat_exclude4 or nat_exclude6) of a CIDR or an address; host bits count as zero.

    Raises ValueError that names what is neither.
    """
    try:
        network = ipaddress.ip_network(prefix, strict=False)
    except ValueError:
        raise ValueError(f"{prefix!r} is not a CIDR such as 10.0.0.0/8 or fd00::/8") from None
    return network.version, _EXCLUDE[network.version].pack(network.prefixlen, network.network_address.packed)


def nat_flow(key: bytes, value: bytes) -> Flow:
    """The flow that an entry of nat4 or nat6 translates, as the pod sees it."""
    size = _ADDRESS[len(key)]
    protocol, kind = key[2 * size + 4], key[2 * size + 5]
    source, destination = _ends(key, size)
    if kind == Kind.ORIGINAL:
        return _flow(source, destination, protocol, 0)
    # Value: address and port of the pod, which is also the form of an end.
    pod = value[: size + 2]
    # The peer answers an echo with the identifier that it saw; the pod knows its own.
    peer = source[:size] + pod[size:] if protocol in _ECHO else source
    return _flow(pod, peer, protocol, 0)


def conntrack_flow(key: bytes) -> Flow:
    """The flow of a key of ct4 or ct6."""
    size = _ADDRESS[len(key)]
    protocol, requester = key[2 * size + 4], key[2 * size + 5]
    first, second = _ends(key, size)
    # Of an echo: 1 + the index of the end that asks.
    return _flow(first, second, protocol, requester - 1 if requester else 0)


def conntrack_keys(flow: Flow) -> Iterator[bytes]:
    """The keys that ct4 or ct6 may have a flow under; which one it is depends on how that table sorts."""
    first, second, protocol = flow
    size = len(first) - 2
    for asker, (a, b) in enumerate(((first, second), (second, first))):
        requester = 1 + asker if protocol in _ECHO else 0
        yield a[:size] + b[:size] + a[size:] + b[size:] + bytes((protocol, requester, 0, 0))


def live_flows(conntrack: Iterable[tuple[bytes, bytes]], now: int) -> set[Flow]:
    """The flows of ct4 or ct6 that have not expired. ``now`` as in ``NatEntry.created``."""
    return {conntrack_flow(key) for key, value in conntrack if _expires(value) >= now}


def expired_pairs(entries: Iterable[tuple[bytes, bytes]], live: Collection[Flow]) -> dict[Flow, list[bytes]]:
    """The keys of entries whose flow is not live, by flow: both of a pair, or the one that is left of it."""
    expired: dict[Flow, list[bytes]] = {}
    for key, value in entries:
        flow = nat_flow(key, value)
        if flow not in live:
            expired.setdefault(flow, []).append(key)
    return expired


def collect(nat: Map, conntrack: Map, now: int) -> NatStats:
    """Removes the pairs whose flow is gone or has expired. Both maps are of one family.

    A walk over both maps: 1 µs an entry. Raises BpfError.
    """
    # In this order: a flow is in conntrack before it is translated.
    entries = list(nat.items())
    expired = expired_pairs(entries, live_flows(conntrack.items(), now))
    # Once more: a packet may just have started the flow anew.
    doomed = [key for flow, keys in expired.items() if not _is_live(flow, conntrack.get, now) for key in keys]
    return NatStats(len(entries), nat.delete_many(doomed))


def _is_live(flow: Flow, get: Callable[[bytes], bytes | None], now: int) -> bool:
    found = (get(key) for key in conntrack_keys(flow))
    return any(value is not None and _expires(value) >= now for value in found)


def _expires(entry: bytes) -> int:
    # The first member of struct ct_entry.
    return int.from_bytes(entry[:4], sys.byteorder)


def _ends(key: bytes, size: int) -> tuple[bytes, bytes]:
    ports = 2 * size
    return key[:size] + key[ports : ports + 2], key[size : 2 * size] + key[ports + 2 : ports + 4]


def _flow(first: bytes, second: bytes, protocol: int, asker: int) -> Flow:
    if protocol in _ECHO:
        return (second, first, protocol) if asker else (first, second, protocol)
    return (first, second, protocol) if first <= second else (second, first, protocol)
