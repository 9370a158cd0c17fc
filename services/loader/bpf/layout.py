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
    ipv6="16s",
    flags="I",
    pad="xxxx",
    rate="Q",
)
IPCACHE_VALUE = _struct("ipcache_value", identity="I", tunnel="4s", flags="I")
IPCACHE_LPM_KEY = _struct("ipcache_lpm_key", prefixlen="I", addr="4s")
IPCACHE6_LPM_KEY = _struct("ipcache6_lpm_key", prefixlen="I", addr="16s")
NODE_STATE = _struct("node_state", generation="I", flags="I")
POLICY_KEY = _struct(
    "policy_key",
    instance="I",
    identity="I",
    direction="B",
    protocol="B",
    port="2s",
    port_prefix="B",
    space="B",
    pad="xx",
)
POLICY_VALUE = _struct(
    "policy_value",
    flags="B",
    pad="x",
    proxy_port="2s",
    rule_cookie="I",
    order="I",
    pad2="xxxx",
    packets="Q",
    bytes="Q",
)
POLICY_SHAPE = _struct(
    "policy_shape",
    enforced="B",
    has_deny="B",
    audit="B",
    pad="x",
    identity_shapes="I",
    wildcard_shapes="I",
    spaces="H",
    pad2="xx",
    other_shapes="I",
)
SUBJECT = _struct("subject", instance="I", epoch="I", revision="Q", shape="40s")
SUBJECT_VERSIONS = _struct("subject_versions", current="I", pad="xxxx", version="112s")
POLICY_LAYERS = _struct(
    "policy_layers",
    key="16s", found="16s", rank="Q", cookie="I", number="I", port="2s", protocol="B", flags="B", pad="xxxx",
)  # fmt: skip
CT4_KEY = _struct("ct4_key", addr="8s", port="4s", protocol="B", requester="B", pad="xx")
CT6_KEY = _struct("ct6_key", addr="32s", port="4s", protocol="B", requester="B", pad="xx")
CT_SIDE = _struct(
    "ct_side",
    route="Q",
    generation="I",
    owner="I",
    subject="I",
    epoch="I",
    identity="I",
    slot="H",
    pad="xx",
)
CT_ENTRY = _struct(
    "ct_entry",
    expires="I",
    created="I",
    origin="B",
    seen="2s",
    flags="B",
    pad="xxxx",
    side="64s",
    packets="16s",
    bytes="16s",
)
CT_SCRATCH = _struct("ct_scratch", entry="112s", key="40s")
METRIC = _struct("metric", packets="32s", bytes="32s")
EVENT = _struct(
    "event",
    time="Q", policy_revision="Q", kind="B", reason="B", direction="B", verdict="B", file="H", line="H",
    ifindex="I", endpoint_id="I", src_identity="I", dst_identity="I", rule_cookie="I", length="I",
    saddr="16s", daddr="16s", sport="2s", dport="2s", protocol="B", tcp_flags="B", family="B", point="B",
    state="B", pad="xxx", captured="I", bytes="96s",
)  # fmt: skip
FAILSAFE_KEY = _struct("failsafe_key", direction="B", protocol="B", port="2s")

STRUCTS = (
    ENDPOINT, IPCACHE_VALUE, IPCACHE_LPM_KEY, IPCACHE6_LPM_KEY, NODE_STATE, POLICY_KEY, POLICY_VALUE,
    POLICY_SHAPE, SUBJECT, SUBJECT_VERSIONS, POLICY_LAYERS, CT4_KEY, CT6_KEY, CT_SIDE, CT_ENTRY, CT_SCRATCH,
    METRIC, EVENT, FAILSAFE_KEY,
)  # fmt: skip

_ENDPOINT, _IPCACHE_VALUE, _POLICY_KEY = ENDPOINT.codec(), IPCACHE_VALUE.codec(), POLICY_KEY.codec()
_POLICY_VALUE, _POLICY_SHAPE, _SUBJECT = POLICY_VALUE.codec(), POLICY_SHAPE.codec(), SUBJECT.codec()
_CT4_KEY, _CT6_KEY, _CT_SIDE, _CT_ENTRY = (
    CT4_KEY.codec(), CT6_KEY.codec(), CT_SIDE.codec(), CT_ENTRY.codec()
)  # fmt: skip
_LPM_KEY, _LPM6_KEY, _PAIR = IPCACHE_LPM_KEY.codec(), IPCACHE6_LPM_KEY.codec(), struct.Struct("=QQ")
_FAILSAFE_KEY = FAILSAFE_KEY.codec()

NODE_STATE_CODEC = NODE_STATE.codec()
SUBJECT_VERSIONS_CODEC = SUBJECT_VERSIONS.codec()
METRIC_CODEC = METRIC.codec()
EVENT_CODEC = EVENT.codec()
CT_ENTRY_EXPIRES = struct.Struct("=I")  # the first member: enough to collect by

METRICS_DIRECTIONS = 4

# The clock of flows: CLOCK_MONOTONIC in units of 2^30 ns.
CT_TICK_SHIFT = 30
HOST_SLOT = 1
ENDPOINT_SLOTS, ENDPOINT_INDEX_MAX = 8192, 65536
SUBJECTS_MAX = 16384
NODE_EVENTS, NODE_TRACE = 1, 2

SHAPE_ANY_PROTOCOL = 1 << 17
POLICY_DENY, POLICY_PASS = 0x01, 0x02
TIER_MASK, SPACE_BY_ADDRESS, SPACE_AUDIT = 3, 4, 8
AUDIT_ALL, AUDIT_ENFORCED = 1, 2
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


def ipv6_bytes(address: str) -> bytes:
    """An address as sixteen bytes. Raises ValueError that names what is no IPv6 address."""
    try:
        return socket.inet_pton(socket.AF_INET6, address)
    except OSError:
        raise ValueError(f"{address!r} is not an IPv6 address") from None


def ipv6_text(data: bytes) -> str:
    """Sixteen bytes as an address."""
    return socket.inet_ntop(socket.AF_INET6, data)


def address_text(data: bytes) -> str:
    """Four or sixteen bytes as an address."""
    return ipv4_text(data) if len(data) == 4 else ipv6_text(data)


def seconds_to_ticks(seconds: float) -> int:
    """A time on CLOCK_MONOTONIC, or a duration of at least one tick, in the unit of flows."""
    return max(int(seconds * 1e9) >> CT_TICK_SHIFT, 1)


def ticks_to_seconds(ticks: int) -> float:
    """The inverse of :func:`seconds_to_ticks`, to within a tick."""
    return (ticks << CT_TICK_SHIFT) / 1e9


def mac_bytes(mac: str) -> bytes:
    """A MAC address as six bytes. Raises ValueError that names what is none."""
    parts = mac.split(":")
    try:
        if len(parts) == 6 and all(len(part) == 2 for part in parts):
            return bytes(int(part, 16) for part in parts)
    except ValueError:
        pass
    raise ValueError(f"{mac!r} is not a MAC address such as 0a:58:0a:f4:01:02")


# A bit of EndpointRow.flags: the endpoint's device is a netkit pair.
ENDPOINT_NETKIT = 1


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """A local endpoint. ``ifindex`` is its device on the host's side; subject and id are 1 or more.

    ``ipv4`` and ``ipv6`` are "" where it has none; ``rate`` is in bytes a second, 0 without a limit.
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
    ipv6: str = ""
    rate: int = 0

    def pack(self) -> bytes:
        """The bytes of ``struct endpoint``."""
        return _ENDPOINT.pack(
            self.ifindex, self.identity, self.subject, self.endpoint_id,
            mac_bytes(self.pod_mac), mac_bytes(self.host_mac), ipv4_bytes(self.ipv4 or "0.0.0.0"),
            ipv6_bytes(self.ipv6 or "::"), self.flags, self.rate,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes) -> EndpointRow:
        """From the bytes of ``struct endpoint``."""
        ifindex, identity, subject, endpoint_id, pod_mac, host_mac, ipv4, ipv6, flags, rate = (
            _ENDPOINT.unpack(data)
        )
        return cls(
            ifindex,
            ipv4_text(ipv4) if any(ipv4) else "",
            identity,
            subject,
            endpoint_id,
            pod_mac.hex(":"),
            host_mac.hex(":"),
            flags,
            ipv6_text(ipv6) if any(ipv6) else "",
            rate,
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
    """``10.0.0.0/8``, ``fd00::/8`` or an address as (network bytes, length).

    Raises ValueError for what is neither or has host bits.
    """
    address, slash, length = prefix.partition("/")
    family = "IPv6" if ":" in address else "IPv4"
    data = ipv6_bytes(address) if family == "IPv6" else ipv4_bytes(address)
    most = len(data) * 8
    if slash and not (length.isascii() and length.isdigit() and int(length) <= most):
        raise ValueError(f"{prefix!r} is not an {family} prefix: the length must be 0 to {most}")
    bits = int(length) if slash else most
    if int.from_bytes(data, "big") & ((1 << (most - bits)) - 1):
        raise ValueError(f"{prefix!r} is not an {family} prefix: bits are set beyond its length")
    return data, bits


def pack_lpm_key(network: bytes, length: int) -> bytes:
    """The bytes of ``struct ipcache_lpm_key`` or, for 16 bytes, ``struct ipcache6_lpm_key``."""
    return (_LPM_KEY if len(network) == 4 else _LPM6_KEY).pack(length, network)


def unpack_lpm_key(data: bytes) -> str:
    """A trie key of either family as a prefix."""
    length, network = (_LPM_KEY if len(data) == _LPM_KEY.size else _LPM6_KEY).unpack(data)
    return f"{address_text(network)}/{length}"


def pack_failsafe_key(direction: int, protocol: int, port: int) -> bytes:
    """The bytes of ``struct failsafe_key``."""
    return _FAILSAFE_KEY.pack(direction, protocol, port.to_bytes(2, "big"))


@dataclass(frozen=True, slots=True)
class PolicyKey:
    """A policy entry's key. ``identity`` 0 is any; ``protocol`` 0 is any (then there is no port).

    ``port`` counts in its ``port_prefix`` leading bits (0 to 16); the rest must be zero. For ICMP it is the
    type, of an echo 8 (128 for ICMPv6). ``space`` is a tier (0 normal, 1 admin, 2 baseline) with SPACE_*.
    """

    instance: int
    identity: int
    direction: int
    protocol: int
    port: int = 0
    port_prefix: int = 0
    space: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.port_prefix <= 16:
            raise ValueError(f"port_prefix is {self.port_prefix}, expected 0 to 16")
        if self.port & (0xFFFF >> self.port_prefix):
            raise ValueError(f"port {self.port} has bits beyond its prefix of {self.port_prefix}")
        if self.port_prefix and not self.protocol:
            raise ValueError("a port needs a protocol")
        if self.direction not in (Direction.INGRESS, Direction.EGRESS):
            raise ValueError(f"direction is {self.direction}, expected 0 (ingress) or 1 (egress)")
        if not 0 <= self.space < 16 or self.space & TIER_MASK == TIER_MASK:
            raise ValueError(f"space is {self.space}, expected a tier of 0 to 2 with 4 and 8 or without")

    def pack(self) -> bytes:
        """The bytes of ``struct policy_key``."""
        return _POLICY_KEY.pack(
            self.instance,
            self.identity,
            self.direction,
            self.protocol,
            self.port.to_bytes(2, "big"),
            self.port_prefix,
            self.space,
        )

    @classmethod
    def unpack(cls, data: bytes) -> PolicyKey:
        """From the bytes of ``struct policy_key``."""
        instance, identity, direction, protocol, port, port_prefix, space = _POLICY_KEY.unpack(data)
        return cls(instance, identity, direction, protocol, int.from_bytes(port, "big"), port_prefix, space)


@dataclass(frozen=True, slots=True)
class PolicyValue:
    """What a policy entry says: allow, unless it has ``deny``, or ``passes`` to the next tier.

    In its tier the entry with the lowest ``order`` decides. ``packets`` and ``bytes`` count what it decided:
    the first packet of each flow, and packets judged again after a change.
    """

    deny: bool = False
    rule_cookie: int = 0
    proxy_port: int = 0
    packets: int = 0
    bytes: int = 0
    passes: bool = False
    order: int = 0

    def pack(self) -> _Bytes:
        """The bytes of ``struct policy_value``."""
        return _POLICY_VALUE.pack(
            (POLICY_DENY if self.deny else 0) | (POLICY_PASS if self.passes else 0),
            self.proxy_port.to_bytes(2, "big"),
            self.rule_cookie,
            self.order,
            self.packets,
            self.bytes,
        )

    @classmethod
    def unpack(cls, data: _Bytes) -> PolicyValue:
        """From the bytes of ``struct policy_value``."""
        flags, proxy_port, cookie, order, packets, octets = _POLICY_VALUE.unpack(data)
        return cls(
            bool(flags & POLICY_DENY),
            cookie,
            int.from_bytes(proxy_port, "big"),
            packets,
            octets,
            bool(flags & POLICY_PASS),
            order,
        )


@dataclass(frozen=True, slots=True)
class DirectionShape:
    """Which lookups can hit for a subject in one direction.

    Bits 0 to 16 of the masks: entries with a protocol and a port prefix of that length; bit 17: entries for
    any protocol. A shape that claims less than there is hides entries; one that claims more only costs
    lookups. With ``audit`` what would be denied passes and is reported.

    ``has_deny`` and the first two masks are about space 0, the normal tier's entries for identities; bit n of
    ``spaces`` says that space n has entries, and ``other_shapes`` is the mask of all of these together.
    ``audit_enforced``: policies in audit mode would enforce the direction.
    """

    enforced: bool = False
    has_deny: bool = False
    identity_shapes: int = 0
    wildcard_shapes: int = 0
    audit: bool = False
    audit_enforced: bool = False
    spaces: int = 0
    other_shapes: int = 0

    def pack(self) -> bytes:
        """The bytes of ``struct policy_shape``."""
        return _POLICY_SHAPE.pack(
            self.enforced,
            self.has_deny,
            (AUDIT_ALL if self.audit else 0) | (AUDIT_ENFORCED if self.audit_enforced else 0),
            self.identity_shapes,
            self.wildcard_shapes,
            self.spaces,
            self.other_shapes,
        )

    @classmethod
    def unpack(cls, data: bytes) -> DirectionShape:
        """From the bytes of ``struct policy_shape``."""
        enforced, has_deny, audit, by_identity, by_any, spaces, others = _POLICY_SHAPE.unpack(data)
        return cls(
            bool(enforced),
            bool(has_deny),
            by_identity,
            by_any,
            bool(audit & AUDIT_ALL),
            bool(audit & AUDIT_ENFORCED),
            spaces,
            others,
        )


def direction_shape(
    entries: Iterable[tuple[PolicyKey, PolicyValue]],
    direction: int,
    *,
    enforced: bool,
    audit: bool = False,
    audit_enforced: bool = False,
) -> DirectionShape:
    """The shape of a subject's entries in one direction; those of the other are passed over."""
    identity_shapes = wildcard_shapes = spaces = other_shapes = 0
    has_deny = False
    for key, value in entries:
        if key.direction != direction:
            continue
        bit = 1 << key.port_prefix if key.protocol else SHAPE_ANY_PROTOCOL
        if key.space:
            spaces |= 1 << key.space
            other_shapes |= bit
            continue
        if key.identity:
            identity_shapes |= bit
        else:
            wildcard_shapes |= bit
        has_deny = has_deny or value.deny
    return DirectionShape(
        enforced, has_deny, identity_shapes, wildcard_shapes, audit, audit_enforced, spaces, other_shapes
    )


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
    """What a flow was judged by at one end, if that end is a local endpoint (``owner`` not 0).

    ``generation`` is the node's when that was last found good.
    """

    owner: int
    subject: int
    epoch: int
    identity: int
    generation: int = 0


@dataclass(frozen=True, slots=True)
class CtEntry:
    """A flow as its initiator sees it.

    ``expires`` and ``created`` are seconds on CLOCK_MONOTONIC, to within 1.1; ports of ICMP echo are its id.
    """

    source: str
    source_port: int
    destination: str
    destination_port: int
    protocol: int
    expires: float
    created: float
    reply_seen: bool
    closing: bool
    egress: CtSide
    ingress: CtSide
    packets: tuple[int, int]
    bytes: tuple[int, int]

    @classmethod
    def unpack(cls, key: _Bytes, value: _Bytes) -> CtEntry:
        """From the bytes of ``struct ct4_key`` or ``struct ct6_key``, and ``struct ct_entry``."""
        addresses, ports, protocol, _ = (_CT4_KEY if len(key) == _CT4_KEY.size else _CT6_KEY).unpack(key)
        expires, created, origin, seen, _, sides, packets, octets = _CT_ENTRY.unpack(value)
        size = len(addresses) // 2
        ends = [
            (
                address_text(addresses[i * size : (i + 1) * size]),
                int.from_bytes(ports[i * 2 : i * 2 + 2], "big"),
            )
            for i in (0, 1)
        ]
        initiator, responder = ends[origin & 1], ends[1 - (origin & 1)]
        ingress, egress = (_side(sides[i : i + _CT_SIDE.size]) for i in (0, _CT_SIDE.size))
        both = seen[0] & seen[1] & CT_SEEN_FIN
        return cls(
            initiator[0], initiator[1], responder[0], responder[1], protocol,
            ticks_to_seconds(expires), ticks_to_seconds(created),
            bool(seen[1]), bool(both or (seen[0] | seen[1]) & CT_SEEN_RST),
            egress, ingress, _PAIR.unpack(packets), _PAIR.unpack(octets),
        )  # fmt: skip


def _side(data: _Bytes) -> CtSide:
    _, generation, owner, subject, epoch, identity, _ = _CT_SIDE.unpack(data)
    return CtSide(owner, subject, epoch, identity, generation)
