"""Masquerading as the loader sees it: the entries of bpf/lib/nat_map.h, and which have had their time.

An entry lives as long as the conntrack entry of the flow that it translates. Everything here is pure but for
:func:`collect`, which reads and writes maps.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import IntEnum

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
# How a conntrack key of ICMP or ICMPv6 ends when the first of its ends is the one that asks.
_ECHO_TAIL = {protocol: bytes((protocol, 1, 0, 0)) for protocol in (1, 58)}


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


def conntrack_key(key: bytes, value: bytes) -> bytes:
    """The key in ct4 or ct6 of the flow that an entry of nat4 or nat6 translates, with the pod's end first.

    That table sorts the ends by an order of its own, so the flow may be there under :func:`turned` instead.
    """
    size = _ADDRESS[len(key)]
    ports, protocol = 2 * size, key[2 * size + 4]
    # Of an echo: 1 + the index of the end that asks.
    tail = _ECHO_TAIL[protocol] if protocol in _ECHO_TAIL else bytes((protocol, 0, 0, 0))
    if key[ports + 5] == Kind.ORIGINAL:
        return key[: ports + 4] + tail
    pod_port = value[size : size + 2]
    # The peer answers an echo with the identifier that it saw; the pod knows its own.
    peer_port = pod_port if protocol in _ECHO_TAIL else key[ports : ports + 2]
    return value[:size] + key[:size] + pod_port + peer_port + tail


def turned(key: bytes) -> bytes:
    """A key of ct4 or ct6 with its ends the other way round: the same flow."""
    size = _ADDRESS[len(key)]
    ports = 2 * size
    requester = key[ports + 5]
    return (
        key[size:ports] + key[:size] + key[ports + 2 : ports + 4] + key[ports : ports + 2]
        + bytes((key[ports + 4], 3 - requester if requester else 0, 0, 0))
    )  # fmt: skip


def live_keys(conntrack: Iterable[tuple[bytes, bytes]], now: int) -> set[bytes]:
    """The keys of ct4 or ct6 that have not expired. ``now`` as in ``NatEntry.created``."""
    return {key for key, value in conntrack if _expires(value) >= now}


def expired_pairs(
    entries: Iterable[tuple[bytes, bytes]], live: Collection[bytes]
) -> dict[bytes, list[bytes]]:
    """The keys of entries whose flow is not live, by :func:`conntrack_key`.

    Both keys of a pair, or the one of what is left of it.
    """
    expired: dict[bytes, list[bytes]] = {}
    for key, value in entries:
        flow = conntrack_key(key, value)
        if flow not in live and turned(flow) not in live:
            expired.setdefault(flow, []).append(key)
    return expired


def collect(nat: Map, conntrack: Map, now: int) -> NatStats:
    """Removes the pairs whose flow is gone or has expired. Both maps are of one family.

    A walk over both maps, some 5 µs an entry: not for the event loop. Raises BpfError.
    """
    # In this order: a flow is in conntrack before it is translated.
    entries = list(nat.items())
    expired = expired_pairs(entries, live_keys(conntrack.items(), now))
    # Once more: a packet may just have started the flow anew.
    doomed = [key for flow, keys in expired.items() if not _is_live(flow, conntrack.get, now) for key in keys]
    return NatStats(len(entries), nat.delete_many(doomed))


def _is_live(flow: bytes, get: Callable[[bytes], bytes | None], now: int) -> bool:
    found = (get(key) for key in (flow, turned(flow)))
    return any(value is not None and _expires(value) >= now for value in found)


def _expires(entry: bytes) -> int:
    # The first member of struct ct_entry.
    return int.from_bytes(entry[:4], sys.byteorder)
