"""The loader's domain types as messages of its API, and the other way round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fimbria.loader.v1 import loader_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.errors import FailedPrecondition, FimbriaError, Internal, InvalidArgument, NotFound
from services.loader.endpoints.endpoint import Endpoint, State
from services.loader.endpoints.regeneration import Level, Progress, Regeneration
from services.loader.interfaces import (
    DatapathError,
    DatapathRefused,
    EntryCount,
    MapHasNoEntries,
    MapInfo,
    MapNotFound,
    MapNotResizable,
    MapRow,
    MapSizeInvalid,
    MapTooSmall,
    ProgramInfo,
    ReloadReport,
    TrackedConnection,
    TrafficCount,
)
from services.loader.policy.entries import TIER_NAMES
from services.loader.policy.messages import ports_message
from services.loader.streams.watch import WatchState

STATES: Final = {
    State.CREATING: pb.ENDPOINT_STATE_CREATING,
    State.READY: pb.ENDPOINT_STATE_READY,
    State.REGENERATING: pb.ENDPOINT_STATE_REGENERATING,
    State.DEGRADED: pb.ENDPOINT_STATE_DEGRADED,
    State.DELETING: pb.ENDPOINT_STATE_DELETING,
}
LEVELS: Final = {
    Level.POLICY: pb.REGENERATION_LEVEL_POLICY,
    Level.RELOAD: pb.REGENERATION_LEVEL_RELOAD,
    Level.REBUILD: pb.REGENERATION_LEVEL_REBUILD,
}
PROGRESS: Final = {
    Progress.QUEUED: pb.REGENERATION_STATE_QUEUED,
    Progress.RUNNING: pb.REGENERATION_STATE_RUNNING,
    Progress.DONE: pb.REGENERATION_STATE_DONE,
    Progress.FAILED: pb.REGENERATION_STATE_FAILED,
}
ROUTING_MODES: Final = {"tunnel": pb.ROUTING_MODE_TUNNEL, "native": pb.ROUTING_MODE_NATIVE}
ENFORCEMENTS: Final = {
    "default": pb.POLICY_ENFORCEMENT_DEFAULT,
    "always": pb.POLICY_ENFORCEMENT_ALWAYS,
    "never": pb.POLICY_ENFORCEMENT_NEVER,
}
_DIRECTIONS: Final = {0: "ingress", 1: "egress"}

Labels = Callable[[int], tuple[str, ...]]


def direction_name(direction: int) -> str:
    """ "ingress", "egress", or empty for neither."""
    return _DIRECTIONS.get(direction, "")


def timestamp(nanoseconds: int) -> Timestamp:
    """A time since the epoch."""
    message = Timestamp()
    message.FromNanoseconds(nanoseconds)
    return message


def duration(seconds: float) -> Duration:
    """A span of time."""
    message = Duration()
    message.FromNanoseconds(int(seconds * 1e9))
    return message


def endpoint_message(endpoint: Endpoint, node: str) -> pb.Endpoint:
    """An endpoint."""
    record, status = endpoint.record, endpoint.status
    spec = record.spec
    return pb.Endpoint(
        id=record.id,
        container_id=spec.container_id,
        ifname=spec.ifname,
        pod_namespace=spec.pod_namespace,
        pod_name=spec.pod_name,
        netns=spec.netns,
        host_device=spec.host_device,
        ifindex=record.ifindex,
        ipv4=record.ipv4,
        ipv6=record.ipv6,
        rate=record.rate,
        mac=record.pod_mac,
        labels=spec.labels,
        identity=record.identity,
        named_ports=ports_message(spec.named_ports),
        state=STATES[status.state],
        last_error=status.last_error,
        policy_revision=status.policy_revision,
        ipcache_revision=status.ipcache_revision,
        subject=record.subject,
        node=node,
        create_time=timestamp(int(record.create_time * 1e9)),
    )


def level_of(level: int) -> Level:
    """The level of a request; RELOAD where it names none."""
    return next((each for each, value in LEVELS.items() if value == level), Level.RELOAD)


def regeneration_message(found: Regeneration) -> pb.Regeneration:
    """One try to bring an endpoint up to date."""
    message = pb.Regeneration(
        level=LEVELS[found.level],
        state=PROGRESS[found.progress],
        cause=found.cause,
        error=found.error,
        attempt=found.attempt,
        trace_id=found.trace_id,
    )
    if found.start_time:
        message.start_time.FromNanoseconds(int(found.start_time * 1e9))
        message.duration.FromNanoseconds(int(found.seconds * 1e9))
    if found.retry_time:
        message.retry_time.FromNanoseconds(int(found.retry_time * 1e9))
    return message


def entry_message(entry: EntryCount, rule: str) -> pb.KernelPolicyEntry:
    """An entry of the policy map."""
    return pb.KernelPolicyEntry(
        direction=direction_name(entry.key.direction),
        identity=entry.key.identity,
        protocol=entry.key.protocol,
        port=entry.key.port,
        port_prefix_length=entry.key.prefix_length,
        deny=entry.value.deny,
        rule=rule,
        rule_cookie=entry.value.cookie,
        packets=entry.packets,
        bytes=entry.bytes,
        tier=TIER_NAMES[entry.key.tier],
        by_address=entry.key.by_address,
        audit=entry.key.audit,
        passes=entry.value.passes,
        order=entry.value.order,
    )


def connection_message(connection: TrackedConnection) -> pb.Connection:
    """A tracked connection."""
    return pb.Connection(
        source=connection.source,
        source_port=connection.source_port,
        destination=connection.destination,
        destination_port=connection.destination_port,
        protocol=connection.protocol,
        expires_in=duration(connection.expires_in),
        closing=connection.closing,
    )


def program_message(program: ProgramInfo) -> pb.ProgramStatus:
    """A loaded program."""
    message = pb.ProgramStatus(
        name=program.name,
        id=program.id,
        tag=program.tag,
        verified_insns=program.verified_insns,
        devices=program.devices,
        attachments=[
            pb.ProgramAttachment(device=place.device, hook=place.hook, kind=place.kind)
            for place in program.attachments
        ],
        instructions=program.instructions,
        memory_bytes=program.memory_bytes,
    )
    if program.load_time:
        message.load_time.CopyFrom(timestamp(int(program.load_time * 1e9)))
    return message


def map_message(found: MapInfo) -> pb.MapStatus:
    """A map."""
    message = pb.MapStatus(
        name=found.name,
        type=found.type,
        max_entries=found.max_entries,
        id=found.id,
        key_size=found.key_size,
        value_size=found.value_size,
        flags=found.flags,
        memory_bytes=found.memory_bytes,
        resized=found.resized,
    )
    if found.entries is not None:
        message.entries = found.entries
    if found.pressure is not None:
        message.pressure = found.pressure
    return message


def row_message(row: MapRow) -> pb.MapEntry:
    """One element of a map."""
    return pb.MapEntry(key=row.key, value=row.value, key_json=row.key_json, value_json=row.value_json)


def reload_message(report: ReloadReport) -> pb.ReloadResponse:
    """What a reload did."""
    return pb.ReloadResponse(
        programs=[program_message(program) for program in report.programs],
        endpoints=report.endpoints,
        duration=duration(report.seconds),
        attach_duration=duration(report.attach_seconds),
        migrated_maps=report.migrated_maps,
        unchanged=report.unchanged,
    )


_REFUSALS: Final[tuple[tuple[type[DatapathError], type[FimbriaError], str], ...]] = (
    (DatapathRefused, FailedPrecondition, "DATAPATH_UNAVAILABLE"),
    (MapNotFound, NotFound, "MAP_NOT_FOUND"),
    (MapNotResizable, FailedPrecondition, "MAP_NOT_RESIZABLE"),
    (MapSizeInvalid, InvalidArgument, "MAP_SIZE_INVALID"),
    (MapTooSmall, FailedPrecondition, "MAP_TOO_SMALL"),
    (MapHasNoEntries, FailedPrecondition, "MAP_HAS_NO_ENTRIES"),
)


def refusal(problem: DatapathError) -> FimbriaError:
    """What the kernel refused, as a client is told of it."""
    for kind, error, reason in _REFUSALS:
        if isinstance(problem, kind):
            return error(str(problem), reason=reason, metadata=problem.metadata)
    return Internal(str(problem), reason="DATAPATH_FAILED", metadata=problem.metadata)


def watch_message(state: WatchState, identity_revision: int = 0) -> pb.WatchStatus:
    """How far a watch has come."""
    message = pb.WatchStatus(
        name=state.name,
        connected=state.connected,
        revision=state.revision,
        error=state.error,
        identity_revision=identity_revision,
        synchronized=state.synchronized,
    )
    if state.sync_time:
        message.sync_time.CopyFrom(timestamp(int(state.sync_time * 1e9)))
    return message


def traffic_message(count: TrafficCount) -> pb.TrafficMetric:
    """Packets and bytes of one reason and direction."""
    return pb.TrafficMetric(
        reason=count.reason,
        reason_code=count.reason_code,
        direction=direction_name(count.direction),
        packets=count.packets,
        bytes=count.bytes,
    )
