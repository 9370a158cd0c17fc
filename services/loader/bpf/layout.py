"""What is in the maps, as frozen dataclasses that pack to and unpack from the bytes of the C structs.

Addresses are dotted strings, MACs ``aa:bb:cc:dd:ee:ff``, ports host order, times seconds unless a name says
otherwise. :data:`STRUCTS` repeats every struct's members; a test compares it with the objects' BTF.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

# A field named bytes hides the type from the annotations of its own class.
_Bytes: TypeAlias = bytes


class Direction(IntEnum):
    """As policy and metrics know them, seen from the endpoint. NONE: neither, or not known yet."""

    INGRESS = 0
    EGRESS = 1
    NONE = 2


@dataclass(frozen=True, slots=True)
class Struct:
    """A C struct: its members in order with their :mod:`struct` formats; padding is a member too."""

    name: str
    members: tuple[tuple[str, str], ...]

    def codec(self) -> struct.Struct:
        """The struct's packer. Byte order and alignment are the machine's; padding packs as zero."""
        return struct.Struct(
            "=" + "".join(f"{len(code)}x" if code.strip("x") == "" else code for _, code in self.members)
        )


def _struct(name: str, **members: str) -> Struct:
    return Struct(name, tuple(members.items()))


# Padding is written as that many x; the formats of big-endian members are byte strings.
ENDPOINT = _struct(
    "endpoint",
    ifindex="I",
    identity="I",
    subject="I",
    endpoint_id="I",
    pod_mac="6s",
    host_mac="6s",
    ipv4="4s",
    flags="I",
    pad="xxxx",
)
IPCACHE_VALUE = _struct("ipcache_value", identity="I", tunnel="4s", flags="I")
IPCACHE_LPM_KEY = _struct("ipcache_lpm_key", prefixlen="I", addr="4s")
NODE_STATE = _struct("node_state", ipcache_generation="I", pad="xxxx")
POLICY_KEY = _struct(
    "policy_key",
    instance="I",
    identity="I",
    direction="B",
    protocol="B",
    port="2s",
    port_prefix="B",
    pad="xxx",
)
POLICY_VALUE = _struct(
    "policy_value", flags="B", pad="x", proxy_port="2s", rule_cookie="I", packets="Q", bytes="Q"
)
POLICY_SHAPE = _struct(
    "policy_shape", enforced="B", has_deny="B", pad="xx", identity_shapes="I", wildcard_shapes="I"
)
SUBJECT = _struct("subject", instance="I", epoch="I", revision="Q", shape="24s")
CT_KEY = _struct("ct_key", addr="8s", port="4s", protocol="B", requester="B", pad="xx")
CT_SIDE = _struct("ct_side", owner="I", subject="I", epoch="I", identity="I", ipcache_generation="I")
CT_ENTRY = _struct(
    "ct_entry",
    expires="I",
    created="I",
    origin="B",
    seen="2s",
    pad="x",
    flags="I",
    side="40s",
    packets="16s",
    bytes="16s",
)
METRIC = _struct("metric", packets="Q", bytes="Q")
EVENT = _struct(
    "event",
    time="Q", policy_revision="Q", kind="B", reason="B", direction="B", verdict="B", file="H", line="H",
    ifindex="I", endpoint_id="I", src_identity="I", dst_identity="I", rule_cookie="I", length="I",
    saddr="16s", daddr="16s", sport="2s", dport="2s", protocol="B", tcp_flags="B", family="B", pad="x",
)  # fmt: skip

STRUCTS = (
    ENDPOINT, IPCACHE_VALUE, IPCACHE_LPM_KEY, NODE_STATE, POLICY_KEY, POLICY_VALUE, POLICY_SHAPE, SUBJECT,
    CT_KEY, CT_SIDE, CT_ENTRY, METRIC, EVENT, )  # fmt: skip

_ENDPOINT, _IPCACHE_VALUE, _POLICY_KEY = ENDPOINT.codec(), IPCACHE_VALUE.codec(), POLICY_KEY.codec()
_POLICY_VALUE, _POLICY_SHAPE, _SUBJECT = POLICY_VALUE.codec(), POLICY_SHAPE.codec(), SUBJECT.codec()
_CT_KEY, _CT_SIDE, _CT_ENTRY = CT_KEY.codec(), CT_SIDE.codec(), CT_ENTRY.codec()
_LPM_KEY, _PAIR = IPCACHE_LPM_KEY.codec(), struct.Struct("=QQ")

NODE_STATE_CODEC = NODE_STATE.codec()
METRIC_CODEC = METRIC.codec()
EVENT_CODEC = EVENT.codec()
CT_ENTRY_EXPIRES = struct.Struct("=I")  # the first member: enough to collect by

METRICS_DIRECTIONS = 4

SHAPE_ANY_PROTOCOL = 1 << 17
POLICY_DENY = 0x01
CT_SEEN, CT_SEEN_FIN, CT_SEEN_RST = 0x01, 0x02, 0x04


def ipv4_bytes(address: str) -> bytes:
    """An address as four bytes. Raises ValueError that names what is no IPv4 address."""
    try:
        return socket.inet_pton(socket.AF_INET, address)
    except OSError:
        raise ValueError(f"{address!r} is not an IPv4 address") from None


def ipv4_text(data: bytes) -> str:
    """Four bytes as an address."""
    return socket.inet_ntop(socket.AF_INET, data)


def mac_bytes(mac: str) -> bytes:
    """A MAC address as six bytes. Raises ValueError that names what is none."""
    parts = mac.split(":")
    try:
        if len(parts) == 6 and all(len(part) == 2 for part in parts):
            return bytes(int(part, 16) for part in parts)
    except ValueError:
        pass
    raise ValueError(f"{mac!r} is not a MAC address such as 0a:58:0a:f4:01:02")


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """A local endpoint. ``ifindex`` is its device on the host's side; subject and id are 1 or more.

    ``endpoint_id`` must not be given to another endpoint soon: flows remember it as their owner.
    """

    ifindex: int
    ipv4: str
    identity: int
    subject: int
    endpoint_id: int
    pod_mac: str
    host_mac: str
    flags: int = 0

    def pack(self) -> bytes:
        """The bytes of ``struct endpoint``."""
        return _ENDPOINT.pack(
            self.ifindex, self.identity, self.subject, self.endpoint_id,
            mac_bytes(self.pod_mac), mac_bytes(self.host_mac), ipv4_bytes(self.ipv4), self.flags,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes) -> EndpointRow:
        """From the bytes of ``struct endpoint``."""
        ifindex, identity, subject, endpoint_id, pod_mac, host_mac, ipv4, flags = _ENDPOINT.unpack(data)
        return cls(
            ifindex,
            ipv4_text(ipv4),
            identity,
            subject,
            endpoint_id,
            pod_mac.hex(":"),
            host_mac.hex(":"),
            flags,
        )


@dataclass(frozen=True, slots=True)
class IpcacheValue:
    """Who is at a prefix. ``tunnel`` is the node to send to, "" where the overlay does not lead there."""

    identity: int
    tunnel: str = ""
    flags: int = 0

    def pack(self) -> bytes:
        """The bytes of ``struct ipcache_value``."""
        return _IPCACHE_VALUE.pack(self.identity, ipv4_bytes(self.tunnel or "0.0.0.0"), self.flags)

    @classmethod
    def unpack(cls, data: bytes) -> IpcacheValue:
        """From the bytes of ``struct ipcache_value``."""
        identity, tunnel, flags = _IPCACHE_VALUE.unpack(data)
        return cls(identity, ipv4_text(tunnel) if any(tunnel) else "", flags)


def split_prefix(prefix: str) -> tuple[bytes, int]:
    """``10.0.0.0/8`` or an address as (network bytes, length).

    Raises ValueError for what is neither or has host bits.
    """
    address, slash, length = prefix.partition("/")
    data = ipv4_bytes(address)
    if slash and not (length.isascii() and length.isdigit() and int(length) <= 32):
        raise ValueError(f"{prefix!r} is not an IPv4 prefix: the length must be 0 to 32")
    bits = int(length) if slash else 32
    if int.from_bytes(data, "big") & ((1 << (32 - bits)) - 1):
        raise ValueError(f"{prefix!r} is not an IPv4 prefix: bits are set beyond its length")
    return data, bits


def pack_lpm_key(network: bytes, length: int) -> bytes:
    """The bytes of ``struct ipcache_lpm_key``."""
    return _LPM_KEY.pack(length, network)


def unpack_lpm_key(data: bytes) -> str:
    """A trie key as a prefix."""
    length, network = _LPM_KEY.unpack(data)
    return f"{ipv4_text(network)}/{length}"


@dataclass(frozen=True, slots=True)
class PolicyKey:
    """A policy entry's key. ``identity`` 0 is any; ``protocol`` 0 is any (then there is no port).

    ``port`` counts in its ``port_prefix`` leading bits (0 to 16); the rest must be zero. For ICMP echo it is
    the type, 8.
    """

    instance: int
    identity: int
    direction: int
    protocol: int
    port: int = 0
    port_prefix: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.port_prefix <= 16:
            raise ValueError(f"port_prefix is {self.port_prefix}, expected 0 to 16")
        if self.port & (0xFFFF >> self.port_prefix):
            raise ValueError(f"port {self.port} has bits beyond its prefix of {self.port_prefix}")
        if self.port_prefix and not self.protocol:
            raise ValueError("a port needs a protocol")
        if self.direction not in (Direction.INGRESS, Direction.EGRESS):
            raise ValueError(f"direction is {self.direction}, expected 0 (ingress) or 1 (egress)")

    def pack(self) -> bytes:
        """The bytes of ``struct policy_key``."""
        return _POLICY_KEY.pack(
            self.instance,
            self.identity,
            self.direction,
            self.protocol,
            self.port.to_bytes(2, "big"),
            self.port_prefix,
        )

    @classmethod
    def unpack(cls, data: bytes) -> PolicyKey:
        """From the bytes of ``struct policy_key``."""
        instance, identity, direction, protocol, port, port_prefix = _POLICY_KEY.unpack(data)
        return cls(instance, identity, direction, protocol, int.from_bytes(port, "big"), port_prefix)


@dataclass(frozen=True, slots=True)
class PolicyValue:
    """What a policy entry says.

    ``packets`` and ``bytes`` count what it decided: the first packet of each flow, and packets judged again
    after a change.
    """

    deny: bool = False
    rule_cookie: int = 0
    proxy_port: int = 0
    packets: int = 0
    bytes: int = 0

    def pack(self) -> _Bytes:
        """The bytes of ``struct policy_value``."""
        return _POLICY_VALUE.pack(
            POLICY_DENY if self.deny else 0,
            self.proxy_port.to_bytes(2, "big"),
            self.rule_cookie,
            self.packets,
            self.bytes,
        )

    @classmethod
    def unpack(cls, data: _Bytes) -> PolicyValue:
        """From the bytes of ``struct policy_value``."""
        flags, proxy_port, cookie, packets, octets = _POLICY_VALUE.unpack(data)
        return cls(bool(flags & POLICY_DENY), cookie, int.from_bytes(proxy_port, "big"), packets, octets)


@dataclass(frozen=True, slots=True)
class DirectionShape:
    """Which lookups can hit for a subject in one direction.

    Bits 0 to 16 of the masks: entries with a protocol and a port prefix of that length; bit 17: entries for
    any protocol. A shape that claims less than there is hides entries; one that claims more only costs
    lookups.
    """

    enforced: bool = False
    has_deny: bool = False
    identity_shapes: int = 0
    wildcard_shapes: int = 0

    def pack(self) -> bytes:
        """The bytes of ``struct policy_shape``."""
        return _POLICY_SHAPE.pack(self.enforced, self.has_deny, self.identity_shapes, self.wildcard_shapes)

    @classmethod
    def unpack(cls, data: bytes) -> DirectionShape:
        """From the bytes of ``struct policy_shape``."""
        enforced, has_deny, identity_shapes, wildcard_shapes = _POLICY_SHAPE.unpack(data)
        return cls(bool(enforced), bool(has_deny), identity_shapes, wildcard_shapes)


def direction_shape(
    entries: Iterable[tuple[PolicyKey, PolicyValue]], direction: int, *, enforced: bool
) -> DirectionShape:
    """The shape of a subject's entries in one direction; those of the other are passed over."""
    identity_shapes = wildcard_shapes = 0
    has_deny = False
    for key, value in entries:
        if key.direction != direction:
            continue
        bit = 1 << key.port_prefix if key.protocol else SHAPE_ANY_PROTOCOL
        if key.identity:
            identity_shapes |= bit
        else:
            wildcard_shapes |= bit
        has_deny = has_deny or value.deny
    return DirectionShape(enforced, has_deny, identity_shapes, wildcard_shapes)


@dataclass(frozen=True, slots=True)
class SubjectRow:
    """Which policy a subject is under.

    A flow judged in another ``epoch`` is judged again with its next packet.
    """

    instance: int
    epoch: int
    revision: int
    ingress: DirectionShape = field(default=DirectionShape())
    egress: DirectionShape = field(default=DirectionShape())

    def pack(self) -> bytes:
        """The bytes of ``struct subject``."""
        return _SUBJECT.pack(
            self.instance, self.epoch, self.revision, self.ingress.pack() + self.egress.pack()
        )

    @classmethod
    def unpack(cls, data: bytes) -> SubjectRow:
        """From the bytes of ``struct subject``."""
        instance, epoch, revision, shapes = _SUBJECT.unpack(data)
        half = _POLICY_SHAPE.size
        return cls(
            instance,
            epoch,
            revision,
            DirectionShape.unpack(shapes[:half]),
            DirectionShape.unpack(shapes[half:]),
        )


@dataclass(frozen=True, slots=True)
class CtSide:
    """What a flow was judged by at one end, if that end is a local endpoint (``owner`` not 0)."""

    owner: int
    subject: int
    epoch: int
    identity: int


@dataclass(frozen=True, slots=True)
class CtEntry:
    """A flow as its initiator sees it.

    ``expires`` and ``created`` are on CLOCK_MONOTONIC; ports of ICMP echo are its id.
    """

    source: str
    source_port: int
    destination: str
    destination_port: int
    protocol: int
    expires: int
    created: int
    reply_seen: bool
    closing: bool
    egress: CtSide
    ingress: CtSide
    packets: tuple[int, int]
    bytes: tuple[int, int]

    @classmethod
    def unpack(cls, key: _Bytes, value: _Bytes) -> CtEntry:
        """From the bytes of ``struct ct_key`` and ``struct ct_entry``."""
        addresses, ports, protocol, _ = _CT_KEY.unpack(key)
        expires, created, origin, seen, _, sides, packets, octets = _CT_ENTRY.unpack(value)
        ends = [
            (ipv4_text(addresses[i * 4 : i * 4 + 4]), int.from_bytes(ports[i * 2 : i * 2 + 2], "big"))
            for i in (0, 1)
        ]
        initiator, responder = ends[origin & 1], ends[1 - (origin & 1)]
        ingress, egress = (
            CtSide(*_CT_SIDE.unpack(sides[i : i + _CT_SIDE.size])[:4]) for i in (0, _CT_SIDE.size)
        )
        both = seen[0] & seen[1] & CT_SEEN_FIN
        return cls(
            initiator[0], initiator[1], responder[0], responder[1], protocol, expires, created,
            bool(seen[1]), bool(both or (seen[0] | seen[1]) & CT_SEEN_RST),
            egress, ingress, _PAIR.unpack(packets), _PAIR.unpack(octets),
        )  # fmt: skip
