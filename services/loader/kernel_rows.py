"""The core's types as the maps have them, and the other way round; the kernel's refusals as the core's."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

from services.loader.bpf.datapath import MapStatus
from services.loader.bpf.errors import (
    BpfError,
    CompileError,
    DatapathUnavailable,
    MapFull,
    MapMismatch,
    VerifierError,
)
from services.loader.bpf.events import Event
from services.loader.bpf.layout import (
    SHAPE_ANY_PROTOCOL,
    DirectionShape,
    EndpointRow,
    PolicyKey,
    PolicyValue,
    SubjectRow,
)
from services.loader.endpoints.endpoint import EndpointRecord
from services.loader.interfaces import (
    DatapathError,
    DatapathRefused,
    MapInfo,
    MapTooSmall,
    PacketReport,
    ReportKind,
    SubjectHead,
    Verdict,
)
from services.loader.policy.entries import EGRESS, INGRESS, NORMAL, EntryKey, EntryValue
from services.loader.policy.plan import Realized
from services.loader.policy.shape import ANY_PROTOCOL
from services.loader.settings_types import FailsafePort

Enforcement: TypeAlias = Literal["default", "always", "never"]


@dataclass(frozen=True, slots=True)
class PolicyMode:
    """What a node makes of policies, all of them alike.

    ``enforcement``: "default" enforces the directions in which a policy selects the endpoint, "always" both,
    "never" none, and then no entry of any tier counts, nor is anything told of policies in audit mode. With
    "always" the tier BASELINE has nothing left to decide: what the tiers before it do not allow is denied.
    ``audit``: verdicts are told of, and every packet passes.
    """

    enforcement: Enforcement = "default"
    audit: bool = False


@dataclass(frozen=True, slots=True)
class NodeRows:
    """What of the node itself is in the maps: the MAC addresses of fimbria_host and fimbria_net, the ports
    that no host policy closes, and the CIDRs that pods reach with their own addresses.
    """

    host_mac: str
    net_mac: str
    failsafe_ports: tuple[FailsafePort, ...] = ()
    masquerade_exclude: tuple[str, ...] = ()


@contextmanager
def refusals() -> Iterator[None]:
    """Raises DatapathError, or the subclass that says it best, for what the datapath refuses within."""
    try:
        yield
    except MapFull as problem:
        raise MapTooSmall(
            str(problem),
            map=problem.name,
            entries=str(problem.entries),
            max_entries=str(problem.max_entries),
        ) from problem
    except MapMismatch as problem:
        raise DatapathRefused(
            str(problem),
            map=problem.name,
            field=problem.field,
            pinned=problem.pinned,
            expected=problem.expected,
        ) from problem
    except VerifierError as problem:
        raise DatapathRefused(str(problem), program=problem.program, log=problem.log_path) from problem
    except CompileError as problem:
        raise DatapathRefused(str(problem), **problem.metadata) from problem
    except DatapathUnavailable as problem:
        raise DatapathRefused(str(problem)) from problem
    except (BpfError, ValueError) as problem:
        raise DatapathError(str(problem)) from problem


def map_info(found: MapStatus) -> MapInfo:
    """A map as it is told of."""
    return MapInfo(
        found.name,
        found.type,
        found.max_entries,
        found.entries,
        found.id,
        found.key_size,
        found.value_size,
        found.flags,
        found.memory_bytes,
        found.resized,
    )


def by_instance(found: Mapping[PolicyKey, PolicyValue]) -> dict[int, dict[EntryKey, EntryValue]]:
    """Policy entries by instance."""
    entries: dict[int, dict[EntryKey, EntryValue]] = {}
    for key, value in found.items():
        entries.setdefault(key.instance, {})[entry_key(key)] = entry_value(value)
    return entries


def entry_value(value: PolicyValue) -> EntryValue:
    """What an entry says, without its counters."""
    return EntryValue(value.deny, value.rule_cookie, value.passes, value.order)


def subject_head(row: SubjectRow) -> SubjectHead:
    """A subject's row without its entries."""
    return SubjectHead(
        row.instance,
        row.epoch,
        row.revision,
        row.ingress.enforced,
        row.egress.enforced,
        (row.ingress.audit_enforced, row.egress.audit_enforced),
    )


def endpoint_row(record: EndpointRecord) -> EndpointRow:
    """An endpoint's row."""
    return EndpointRow(
        ifindex=record.ifindex,
        ipv4=record.ipv4,
        identity=record.identity,
        subject=record.subject,
        endpoint_id=record.id,
        pod_mac=record.pod_mac,
        host_mac=record.host_mac,
        ipv6=record.ipv6,
        rate=record.rate,
    )


def device_name(ifindex: int) -> str:
    """A device's name; its number once it is gone."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return str(ifindex)


def policy_key(instance: int, key: EntryKey) -> PolicyKey:
    """An entry's key in the policy map."""
    return PolicyKey(
        instance, key.identity, key.direction, key.protocol, key.port, key.prefix_length, key.space
    )


def entry_key(key: PolicyKey) -> EntryKey:
    """An entry's key without its instance."""
    return EntryKey(key.direction, key.identity, key.protocol, key.port, key.port_prefix, key.space)


def subject_row(realized: Realized, mode: PolicyMode = PolicyMode()) -> SubjectRow:
    """A subject's row as the datapath reads it on a node of that mode."""
    return SubjectRow(
        instance=realized.instance,
        epoch=realized.epoch,
        revision=realized.revision,
        ingress=_shape(realized, INGRESS, mode),
        egress=_shape(realized, EGRESS, mode),
    )


def _shape(realized: Realized, direction: int, mode: PolicyMode) -> DirectionShape:
    if mode.enforcement == "never":
        return DirectionShape(False, False, 0, 0, mode.audit)
    identity = wildcard = spaces = others = 0
    for level in realized.shape.present(direction):
        bit = SHAPE_ANY_PROTOCOL if level.prefix_length == ANY_PROTOCOL else 1 << level.prefix_length
        if level.space != NORMAL:
            spaces |= 1 << level.space
            others |= bit
        elif level.wildcard:
            wildcard |= bit
        else:
            identity |= bit
    enforced = realized.enforced(direction) or mode.enforcement == "always"
    return DirectionShape(
        enforced,
        realized.shape.has_deny(direction),
        identity,
        wildcard,
        mode.audit,
        realized.audit_enforced[direction],
        spaces,
        others,
    )


def policy_value(value: EntryValue) -> PolicyValue:
    """An entry's value in the policy map."""
    return PolicyValue(deny=value.deny, rule_cookie=value.cookie, passes=value.passes, order=value.order)


_VERDICTS = {"allow": Verdict.FORWARDED, "deny": Verdict.DROPPED, "audit": Verdict.AUDIT}
_ETHERTYPES = {b"\x08\x00": 4, b"\x86\xdd": 6}


def packet_report(event: Event) -> PacketReport:
    """What the datapath said of a packet."""
    return PacketReport(
        time_ns=event.time_ns,
        kind=ReportKind(event.kind),
        verdict=_VERDICTS[event.verdict],
        reason=event.reason_name,
        reason_code=event.reason,
        direction=event.direction,
        # What was dropped before anybody read its addresses is of a family all the same.
        family=_ETHERTYPES.get(event.packet[12:14], 0),
        protocol=event.protocol,
        source=event.source,
        source_port=event.source_port,
        source_identity=event.source_identity,
        destination=event.destination,
        destination_port=event.destination_port,
        destination_identity=event.destination_identity,
        rule_cookie=event.rule_cookie,
        policy_revision=event.policy_revision,
        tcp_flags=event.tcp_flags,
        endpoint_id=event.endpoint_id,
        location=f"{event.file}:{event.line}",
        point=event.point,
        state=event.state,
        length=event.length,
        packet=event.packet,
    )
