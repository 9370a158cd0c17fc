"""What is in the kernel's maps, to and from what the model has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from services.loader.bpf.layout import (
    SPACE_AUDIT,
    SPACE_BY_ADDRESS,
    CtEntry,
    Direction,
    EndpointRow,
    PolicyKey,
    PolicyValue,
    SubjectRow,
    direction_shape,
)
from services.loader.bpf.nat import NatEntry
from tests.fuzz.model.conntrack import Side
from tests.fuzz.model.masquerade import Place
from tests.fuzz.model.parsing import Tuple5
from tests.fuzz.model.world import Endpoint, Policy, Tier

# Far apart, and longer than any session: when an entry expires tells its state, and none does by itself.
LIFETIMES = {"syn": 1_000_000, "established": 2_000_000, "closing": 3_000_000, "any": 4_000_000}
_ECHO = (1, 58)
# As the kernel counts them.
_TIERS = {Tier.NORMAL: 0, Tier.ADMIN: 1, Tier.BASELINE: 2}


@dataclass(frozen=True, slots=True)
class KnownFlow:
    """A flow as the kernel has it. Pairs: the initiator's first."""

    lifetime: str
    packets: tuple[int, int]
    octets: tuple[int, int]
    replied: bool
    closing: bool
    sides: tuple[Side | None, Side | None]


def text(address: bytes | None) -> str:
    """An address as the loader writes it, "" for none."""
    return "" if address is None else str(ip_address(address))


def row(endpoint: Endpoint) -> EndpointRow:
    """An endpoint as the loader has it."""
    return EndpointRow(
        ifindex=endpoint.ifindex, identity=endpoint.identity, subject=endpoint.subject,
        endpoint_id=endpoint.endpoint_id, pod_mac=endpoint.pod_mac.hex(":"),
        host_mac=endpoint.host_mac.hex(":"), ipv4=text(endpoint.ipv4), ipv6=text(endpoint.ipv6),
        rate=endpoint.rate,
    )  # fmt: skip


def entries_of(instance: int, policy: Policy) -> Iterator[tuple[PolicyKey, PolicyValue]]:
    """A policy's entries, in the map as ``instance``."""
    for direction, rules in ((Direction.INGRESS, policy.ingress), (Direction.EGRESS, policy.egress)):
        for entry in rules.entries:
            space = _TIERS[entry.tier] | SPACE_BY_ADDRESS * entry.by_address | SPACE_AUDIT * entry.tried
            key = PolicyKey(
                instance, entry.identity, direction, entry.protocol, entry.port, entry.prefix, space
            )
            yield (
                key,
                PolicyValue(
                    deny=entry.deny, passes=entry.passes, order=entry.order, rule_cookie=entry.cookie
                ),
            )


def subject(instance: int, policy: Policy, entries: list[tuple[PolicyKey, PolicyValue]]) -> SubjectRow:
    """A subject's row; ``entries`` are those of :func:`entries_of`."""
    shapes = [
        direction_shape(
            entries,
            direction,
            enforced=rules.enforced,
            audit=rules.audit,
            audit_enforced=rules.tries_to_enforce,
        )
        for direction, rules in ((Direction.INGRESS, policy.ingress), (Direction.EGRESS, policy.egress))
    ]
    return SubjectRow(instance, policy.epoch, policy.epoch, *shapes)


def flow_of(entry: CtEntry) -> Tuple5:
    """Which flow an entry is of, from its initiator."""
    return Tuple5(
        ip_address(entry.source).packed, ip_address(entry.destination).packed, entry.protocol,
        entry.source_port, entry.destination_port,
    )  # fmt: skip


def original(entry: NatEntry) -> Tuple5:
    """The flow of an original entry."""
    return Tuple5(
        ip_address(entry.source).packed, ip_address(entry.destination).packed, entry.protocol,
        entry.source_port, entry.destination_port,
    )  # fmt: skip


def owned(entry: NatEntry) -> tuple[Place, Tuple5]:
    """What the answer looks like, and the flow that a reverse entry leads to."""
    peer = ip_address(entry.source).packed
    # The pod knows its echo by its own identifier, the peer by the node's.
    peer_port = entry.to_port if entry.protocol in _ECHO else entry.source_port
    flow = Tuple5(ip_address(entry.to).packed, peer, entry.protocol, entry.to_port, peer_port)
    return (peer, entry.source_port, entry.protocol, entry.destination_port), flow


def known(entry: CtEntry, now: float) -> KnownFlow:
    """What an entry knows; ``now`` is on CLOCK_MONOTONIC, in seconds."""
    left = entry.expires - now
    lifetime = min(LIFETIMES, key=lambda name: abs(LIFETIMES[name] - left)) if left > 0 else "expired"
    sides = [
        Side(side.owner, side.subject, side.epoch, side.identity) if side.owner else None
        for side in (entry.egress, entry.ingress)
    ]
    return KnownFlow(
        lifetime, entry.packets, entry.bytes, entry.reply_seen, entry.closing, (sides[0], sides[1])
    )
