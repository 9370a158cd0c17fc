"""A kernel, devices and services that are dictionaries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from services.chassis.errors import NotFound, Unavailable
from services.loader.endpoints.endpoint import EndpointRecord, EndpointSpec, Workload
from services.loader.interfaces import (
    Allocation,
    AttachedEndpoint,
    Collected,
    DatapathError,
    EndpointLink,
    EntryCount,
    EventSource,
    MapInfo,
    MapRow,
    Node,
    PacketReport,
    ProgramInfo,
    ReloadReport,
    ResolvedIdentity,
    StrayPin,
    SubjectHead,
    TrackedConnection,
    TrafficCount,
    UseReport,
)
from services.loader.ipcache.table import Changes, Meaning
from services.loader.policy.entries import EntryKey, EntryValue
from services.loader.policy.plan import Realized


class Counting:
    """Numbers in memory."""

    def __init__(self, start: int = 1) -> None:
        self.next = start

    def take(self) -> int:
        self.next += 1
        return self.next - 1


class FakeKernel:
    """A :class:`~services.loader.interfaces.Datapath`. ``fail`` holds the names of methods that refuse."""

    def __init__(self) -> None:
        self.entries: dict[int, dict[EntryKey, EntryValue]] = {}
        self.rows: dict[int, SubjectHead] = {}
        self.addresses: dict[str, Meaning] = {}
        self.blocks: dict[str, int] = {}
        self.endpoints: dict[int, AttachedEndpoint] = {}
        self.hooked: set[int] = set()
        self.pins: list[StrayPin] = []
        self.fail: set[str] = set()
        self.writes: list[str] = []

    def _write(self, name: str) -> None:
        if name in self.fail:
            raise DatapathError(f"{name} refused")
        self.writes.append(name)

    def put_policy(self, instance: int, entries: Iterable[tuple[EntryKey, EntryValue]]) -> None:
        for key, value in entries:
            self._write("put_policy")
            self.entries.setdefault(instance, {})[key] = value

    def delete_policy(self, instance: int, keys: Iterable[EntryKey]) -> None:
        for key in keys:
            self._write("delete_policy")
            self.entries.get(instance, {}).pop(key, None)
        if not self.entries.get(instance, True):
            del self.entries[instance]

    def policy(self) -> dict[int, dict[EntryKey, EntryValue]]:
        return {instance: dict(entries) for instance, entries in self.entries.items()}

    def walk_policy(self) -> dict[int, dict[EntryKey, EntryValue]]:
        return self.policy()

    def policy_counts(self, instance: int) -> list[EntryCount]:
        return [EntryCount(key, value, 0, 0) for key, value in self.entries.get(instance, {}).items()]

    def put_subject(self, subject: int, realized: Realized) -> None:
        self._write("put_subject")
        self.rows[subject] = SubjectHead(
            realized.instance,
            realized.epoch,
            realized.revision,
            realized.ingress_enforced,
            realized.egress_enforced,
            realized.audit_enforced,
        )

    def delete_subject(self, subject: int) -> None:
        self._write("delete_subject")
        self.rows.pop(subject, None)

    def subjects(self) -> dict[int, SubjectHead]:
        return dict(self.rows)

    def holds(self, subject: int, realized: Realized) -> bool:
        return self.rows.get(subject) == SubjectHead(
            realized.instance,
            realized.epoch,
            realized.revision,
            realized.ingress_enforced,
            realized.egress_enforced,
            realized.audit_enforced,
        )

    def write_prefixes(self, puts: Mapping[str, int], deletes: Iterable[str]) -> None:
        self._write("write_prefixes")
        for prefix in deletes:
            self.blocks.pop(prefix, None)
        self.blocks.update(puts)

    def prefixes(self) -> dict[str, int]:
        return dict(self.blocks)

    def walk_prefixes(self) -> dict[str, int]:
        return self.prefixes()

    def write_ipcache(self, changes: Changes) -> None:
        self._write("write_ipcache")
        self.addresses.update(changes.puts)
        for prefix in changes.deletes:
            self.addresses.pop(prefix, None)

    def ipcache(self) -> dict[str, Meaning]:
        return dict(self.addresses)

    def walk_ipcache(self) -> dict[str, Meaning]:
        return self.ipcache()

    def attach(self, record: EndpointRecord) -> None:
        self._write("attach")
        self._row(record)
        self.hooked.add(record.ifindex)

    def update(self, record: EndpointRecord) -> None:
        self._write("update")
        self._row(record)

    def unhooked(self) -> frozenset[int]:
        return frozenset(self.endpoints.keys() - self.hooked)

    def node_unhooked(self) -> list[str]:
        return []

    def stray_pins(self, devices: Collection[str]) -> list[StrayPin]:
        return list(self.pins)

    def remove_stray_pin(self, stray: StrayPin) -> None:
        self.pins.remove(stray)

    def _row(self, record: EndpointRecord) -> None:
        self.endpoints[record.ifindex] = AttachedEndpoint(
            record.ifindex,
            record.id,
            record.identity,
            record.subject,
            record.ipv4,
            record.host_mac,
            record.pod_mac,
            record.ipv6,
            record.rate,
        )

    def detach(self, ifindex: int, ipv4: str, ipv6: str = "") -> None:
        self._write("detach")
        self.endpoints.pop(ifindex, None)

    def attached(self) -> list[AttachedEndpoint]:
        return list(self.endpoints.values())

    def reload(self, *, rebuild: bool) -> ReloadReport:
        self._write("rebuild" if rebuild else "reload")
        self.hooked |= self.endpoints.keys()
        return ReloadReport((), len(self.endpoints), 0.0, 0.0)

    def resize_map(self, name: str, max_entries: int) -> MapInfo:
        self._write("resize_map")
        return MapInfo(name, "hash", max_entries, 0, resized=bool(max_entries))

    def map_entries(self, name: str, limit: int) -> Iterator[MapRow]:
        return iter(())

    def collect_connections(self) -> Collected:
        return Collected(0, 0)

    def connections(self, limit: int) -> tuple[list[TrackedConnection], int]:
        return [], 0

    def programs(self) -> list[ProgramInfo]:
        return []

    def maps(self, *, count: bool = True) -> list[MapInfo]:
        return []

    def traffic(self) -> list[TrafficCount]:
        return []

    def lost_events(self) -> int:
        return 0

    def open_events(self, callback: Callable[[PacketReport], None]) -> EventSource:
        raise NotImplementedError

    def close(self) -> None:
        pass


class FakeBarrier:
    """All nodes know everything, unless the test says so: ``closed`` is set when somebody waits."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def wait(self, identity_revision: int, seconds: float) -> bool:
        self.closed.set()
        await self.open.wait()
        return True


@dataclass
class FakeLinks:
    """Devices by name. ``fail`` holds the names of methods that refuse."""

    devices: dict[str, int] = field(default_factory=dict)
    up: set[str] = field(default_factory=set)
    own: tuple[str, ...] = ()
    routes: list[str] = field(default_factory=list)
    endpoint_routes: list[str] = field(default_factory=list)
    stray_routes: list[tuple[int, str]] = field(default_factory=list)
    fail: set[str] = field(default_factory=set)
    next_ifindex: int = 100
    listed: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def _refuse(self, name: str) -> None:
        if name in self.fail:
            raise Unavailable(f"{name} refused", reason="REFUSED")

    async def prepare_endpoint_link(self, record: EndpointRecord, netns_fd: int | None) -> None:
        self._refuse("prepare_endpoint_link")
        self.next_ifindex += 1
        self.devices[record.spec.host_device] = self.next_ifindex

    async def create_endpoint_link(self, record: EndpointRecord, netns_fd: int | None) -> EndpointLink:
        await self.gate.wait()
        self._refuse("create_endpoint_link")
        return EndpointLink(
            self.devices[record.spec.host_device], "02:00:00:00:00:01", "02:00:00:00:00:02", 1500
        )

    async def open_endpoint_link(self, record: EndpointRecord) -> None:
        self._refuse("open_endpoint_link")
        self.up.add(record.spec.host_device)

    async def delete_endpoint_link(self, device: str) -> None:
        await asyncio.sleep(0)
        self._refuse("delete_endpoint_link")
        self.devices.pop(device, None)
        self.up.discard(device)

    async def check_endpoint_link(self, record: EndpointRecord, netns_fd: int | None) -> list[str]:
        return [] if record.spec.host_device in self.devices else ["the device is gone"]

    async def endpoint_links(self) -> Mapping[str, int]:
        self.listed += 1
        return dict(self.devices)

    async def sync_endpoint_routes(self, records: Sequence[EndpointRecord]) -> None:
        self._refuse("sync_endpoint_routes")
        self.endpoint_routes = [address for record in records for address in record.addresses]

    async def list_endpoint_routes(self) -> list[tuple[int, str]]:
        return list(self.stray_routes)

    async def delete_endpoint_route(self, ifindex: int, address: str) -> None:
        self.stray_routes.remove((ifindex, address))

    async def set_own(self, own: Node) -> None:
        self._refuse("set_own")
        self.own = own.pod_cidrs

    async def set_remote_nodes(self, nodes: Sequence[Node]) -> None:
        self._refuse("set_remote_nodes")
        self.routes = [cidr for node in nodes for cidr in node.pod_cidrs]


@dataclass
class FakeServices:
    """IPAM's addresses and the identity service. While ``down`` every call is Unavailable. ``families`` are
    the IP versions that addresses are given of.
    """

    down: bool = False
    families: tuple[int, ...] = (4,)
    fail: set[str] = field(default_factory=set)
    owners: dict[str, str] = field(default_factory=dict)
    allocated: dict[str, int] = field(default_factory=dict)
    workloads: dict[str, Workload] = field(default_factory=dict)
    identities: dict[tuple[str, ...], int] = field(default_factory=dict)
    published: dict[str, int] = field(default_factory=dict)
    reported: list[tuple[int, ...]] = field(default_factory=list)
    lease: float = 900
    filter_revision: int = 1
    ignored: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    free: list[str] = field(default_factory=lambda: [f"10.0.0.{n}" for n in range(2, 250)])

    async def _call(self, name: str) -> None:
        await asyncio.sleep(0)
        self.calls.append(name)
        if self.down or name in self.fail:
            raise Unavailable(f"{name}: the service is down", reason="SERVICE_UNAVAILABLE")

    async def allocate(self, spec: EndpointSpec) -> Allocation:
        await self._call("allocate")
        owner = spec.owner
        self.workloads[owner] = spec.workload
        if owner not in self.owners:
            self.owners[owner] = self.free.pop(0)
        ipv4 = self.owners[owner]
        ipv6 = ipv4.replace("10.0.0.", "fd00::")
        return Allocation(
            *((ipv4, "10.0.0.1") if 4 in self.families else ("", "")),
            *((ipv6, "fd00::1") if 6 in self.families else ("", "")),
            self.allocated.setdefault(owner, len(self.calls)),
        )

    async def release(self, owner: str, created_ns: int = 0) -> None:
        await self._call("release")
        if owner in self.owners and created_ns in (0, self.allocated.get(owner, 0)):
            self.allocated.pop(owner, None)
            self.free.insert(0, self.owners.pop(owner))

    async def held(self) -> Mapping[str, tuple[str, ...]]:
        await self._call("held")
        return {owner: (address,) for owner, address in self.owners.items()}

    async def published_here(self) -> Mapping[str, str]:
        await self._call("published_here")
        return dict.fromkeys(self.published, "shop/web")

    async def resolve(self, labels: Sequence[str]) -> ResolvedIdentity:
        await self._call("resolve")
        kept = tuple(label for label in labels if label not in self.ignored)
        number = self.identities.setdefault(kept, max(self.identities.values(), default=255) + 1)
        return ResolvedIdentity(number, number - 255)

    async def report(self, identities: Sequence[int]) -> UseReport:
        await self._call("report")
        self.reported.append(tuple(identities))
        known = set(self.identities.values())
        return UseReport(self.lease, frozenset(identities) - known, self.filter_revision)

    async def labels(self, identity: int) -> tuple[str, ...]:
        await self._call("labels")
        return next(labels for labels, number in self.identities.items() if number == identity)

    async def publish(self, records: Sequence[EndpointRecord], *, replace: bool = False) -> int:
        await self._call("publish")
        unknown = {record.identity for record in records} - set(self.identities.values())
        if unknown:
            raise NotFound(f"there is no identity {min(unknown)}", reason="IDENTITY_NOT_FOUND")
        if replace:
            self.published.clear()
        self.published.update((prefix, record.identity) for record in records for prefix in record.prefixes)
        return len(self.calls)

    async def withdraw(self, prefixes: Sequence[str]) -> None:
        await self._call("withdraw")
        for prefix in prefixes:
            self.published.pop(prefix, None)
