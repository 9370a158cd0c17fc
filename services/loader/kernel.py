"""The real datapath behind :class:`~services.loader.interfaces.Datapath`: the core's types to the maps' and
back.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

from services.loader.bpf.census import count_elements
from services.loader.bpf.datapath import KernelDatapath
from services.loader.bpf.drop_reasons import EVENT_LOST
from services.loader.bpf.events import Event, EventReader
from services.loader.bpf.layout import (
    Direction,
    IpcacheValue,
)
from services.loader.bpf.load_report import LoadReport
from services.loader.bpf.map_dump import can_list, dump
from services.loader.bpf.map_plan import RING_BUFFER
from services.loader.bpf.map_sizes import MapSizes
from services.loader.bpf.maps import Map
from services.loader.bpf.opening import check_room
from services.loader.bpf.recovery import Recovered
from services.loader.bpf.stray_pins import find_stray_pins, remove_stray_pin
from services.loader.endpoints.endpoint import EndpointRecord
from services.loader.interfaces import (
    AttachedEndpoint,
    Collected,
    DatapathError,
    EntryCount,
    EventSource,
    MapHasNoEntries,
    MapInfo,
    MapNotFound,
    MapNotResizable,
    MapRow,
    MapSizeInvalid,
    PacketReport,
    ProgramAttachment,
    ProgramInfo,
    ReloadReport,
    StrayPin,
    SubjectHead,
    TrackedConnection,
    TrafficCount,
)
from services.loader.ipcache.table import Changes, Meaning
from services.loader.kernel_rows import (
    Enforcement,
    NodeRows,
    PolicyMode,
    by_instance,
    device_name,
    endpoint_row,
    entry_key,
    entry_value,
    map_info,
    packet_report,
    policy_key,
    policy_value,
    refusals,
    subject_head,
    subject_row,
)
from services.loader.policy.entries import EntryKey, EntryValue
from services.loader.policy.plan import Realized
from services.loader.policy.subjects import realized_from

__all__ = ["Enforcement", "Kernel", "NodeRows", "PolicyMode", "subject_row"]

# As many as the kernel can number; what there is memory for is less.
_MAP_ENTRIES_MOST = (1 << 31) - 1


class Epochs(Protocol):
    """Gives out epochs that were never given out before."""

    def take(self) -> int: ...


class Reopen(Protocol):
    """Opens the node's datapath anew, with these maps larger or smaller than declared."""

    def __call__(self, *, rebuild: bool, map_sizes: Mapping[str, int]) -> KernelDatapath: ...


class Kernel:
    """The node's kernel state. ``reopen`` opens it anew; ``sizes`` are what operators gave to maps.

    Any thread may use it. While programs and maps are exchanged everything else waits; walks over connections
    wait for nothing but that.
    """

    def __init__(
        self,
        datapath: KernelDatapath,
        reopen: Reopen,
        mode: PolicyMode = PolicyMode(),
        sizes: MapSizes | None = None,
    ) -> None:
        self._datapath = datapath
        self._reopen = reopen
        self._mode = mode
        self._sizes = sizes or MapSizes()
        self._walking = threading.Lock()
        self._using = threading.RLock()
        self._events: weakref.WeakSet[_Events] = weakref.WeakSet()

    # -- policy

    def put_policy(self, instance: int, entries: Iterable[tuple[EntryKey, EntryValue]]) -> None:
        """Adds or replaces entries."""
        batch = [(policy_key(instance, key), policy_value(value)) for key, value in entries]
        if batch:
            with refusals(), self._using:
                self._datapath.policy_put(batch)

    def delete_policy(self, instance: int, keys: Iterable[EntryKey]) -> None:
        """Removes entries; those that are not there are passed over."""
        batch = [policy_key(instance, key) for key in keys]
        if batch:
            with refusals(), self._using:
                self._datapath.policy_delete(batch)

    def policy(self) -> dict[int, dict[EntryKey, EntryValue]]:
        """Every entry, by instance."""
        with refusals(), self._using:
            found = self._datapath.policy_entries()
        return by_instance(found)

    def walk_policy(self) -> dict[int, dict[EntryKey, EntryValue]]:
        """As :meth:`policy`, beside everything else."""
        with refusals(), self._walking:
            found = self._datapath.policy_entries()
        return by_instance(found)

    def policy_counts(self, instance: int) -> list[EntryCount]:
        """One instance's entries with their counters."""
        with refusals(), self._using:
            found = self._datapath.policy_entries(instance)
        return [
            EntryCount(entry_key(key), entry_value(value), value.packets, value.bytes)
            for key, value in found.items()
        ]

    def put_subject(self, subject: int, realized: Realized) -> None:
        """Puts a subject's policy into force."""
        row = subject_row(realized, self._mode)
        with refusals(), self._using:
            self._datapath.subject_put(subject, row)

    def delete_subject(self, subject: int) -> None:
        """Removes a subject's row."""
        with refusals(), self._using:
            self._datapath.subject_delete(subject)

    def subjects(self) -> dict[int, SubjectHead]:
        """Every subject's row."""
        with refusals(), self._using:
            rows = self._datapath.subjects()
        return {number: subject_head(row) for number, row in rows.items()}

    def holds(self, subject: int, realized: Realized) -> bool:
        """Whether the subject's row is what :meth:`put_subject` would write."""
        with refusals(), self._using:
            return self._datapath.subject_get(subject) == subject_row(realized, self._mode)

    def conform_subjects(self, epochs: Epochs) -> int:
        """Rewrites the rows that a former process made in another policy mode; returns how many.

        What such a row enforced by itself is not known in "default" after "always" or "never": it stays as it
        is until the policy service has told.
        """
        with refusals(), self._using:
            rows = self._datapath.subjects()
            if not rows:
                return 0
            entries = self.policy()
            changed = 0
            for number, row in rows.items():
                known = realized_from(subject_head(row), entries.get(row.instance, {}))
                wanted = subject_row(known, self._mode)
                if wanted != row:
                    self._datapath.subject_put(number, replace(wanted, epoch=epochs.take()))
                    changed += 1
        return changed

    # -- prefixes of policies

    def write_prefixes(self, puts: Mapping[str, int], deletes: Iterable[str]) -> None:
        """Adds or replaces numbers, and removes prefixes."""
        with refusals(), self._using:
            # First, so that a map that is full has room again.
            self._datapath.blocks_delete(deletes)
            self._datapath.blocks_put(puts.items())

    def prefixes(self) -> dict[str, int]:
        """Every number, by prefix."""
        with refusals(), self._using:
            return self._datapath.blocks()

    def walk_prefixes(self) -> dict[str, int]:
        """As :meth:`prefixes`, beside everything else."""
        with refusals(), self._walking:
            return self._datapath.blocks()

    # -- ipcache

    def write_ipcache(self, changes: Changes) -> None:
        """Adds, replaces and removes entries."""
        with refusals(), self._using:
            # First, so that a map that is full has room again.
            if changes.deletes:
                self._datapath.ipcache_delete(list(changes.deletes))
            if changes.puts:
                self._datapath.ipcache_put(
                    [
                        (prefix, IpcacheValue(meaning.identity, meaning.tunnel))
                        for prefix, meaning in changes.puts.items()
                    ]
                )

    def ipcache(self) -> dict[str, Meaning]:
        """Every entry, by prefix."""
        with refusals(), self._using:
            found = self._datapath.ipcache()
        return {prefix: Meaning(value.identity, value.tunnel) for prefix, value in found.items()}

    def walk_ipcache(self) -> dict[str, Meaning]:
        """As :meth:`ipcache`, beside everything else."""
        with refusals(), self._walking:
            found = self._datapath.ipcache()
        return {prefix: Meaning(value.identity, value.tunnel) for prefix, value in found.items()}

    # -- endpoints

    def attach(self, record: EndpointRecord) -> None:
        """Writes the endpoint's rows and attaches the programs to its device."""
        with refusals(), self._using:
            self._datapath.attach_endpoint(endpoint_row(record))

    def update(self, record: EndpointRecord) -> None:
        """Writes the endpoint's rows alone, for a new identity or subject."""
        with refusals(), self._using:
            self._datapath.update_endpoint(endpoint_row(record))

    def detach(self, ifindex: int, ipv4: str, ipv6: str = "") -> None:
        """Removes the endpoint's rows and programs; what is not there is passed over."""
        with refusals(), self._using:
            self._datapath.detach_endpoint(ifindex, ipv4, ipv6)

    def attached(self) -> list[AttachedEndpoint]:
        """Every endpoint row."""
        with refusals(), self._using:
            rows = self._datapath.endpoints()
        return [
            AttachedEndpoint(
                ifindex=row.ifindex,
                endpoint_id=row.endpoint_id,
                identity=row.identity,
                subject=row.subject,
                ipv4=row.ipv4,
                host_mac=row.host_mac,
                pod_mac=row.pod_mac,
                ipv6=row.ipv6,
                rate=row.rate,
            )
            for row in rows
        ]

    def unhooked(self) -> frozenset[int]:
        """Interface indexes of endpoint rows whose device does not run the programs in force, or that no map
        leads to.
        """
        with refusals(), self._walking:
            found = {program.name: set(program.devices) for program in self._datapath.programs()}
            whole = found.get("from_container", set()) & found.get("to_container", set())
            devices = frozenset(row.ifindex for row in self._datapath.endpoints())
            return (devices - whole) | frozenset(self._datapath.astray())

    # -- the node

    def node_unhooked(self) -> list[str]:
        """Which of the node's own devices do not run a program that they should, in words."""
        with refusals(), self._walking:
            running = {program.name: set(program.devices) for program in self._datapath.programs()}
            return [
                f"{device} does not run {program}"
                for device, ifindex, _, program in self._datapath.places()
                if ifindex not in running.get(program, ())
            ]

    def configure_node(self, node: NodeRows) -> None:
        """Writes what the programs on the node's own devices go by."""
        ports = [
            (Direction.INGRESS if each.ingress else Direction.EGRESS, each.protocol, each.port)
            for each in node.failsafe_ports
        ]
        with refusals(), self._using:
            self._datapath.failsafe_put(ports)
            # The policy that a former process put in force stays.
            subject = self._datapath.host_subject()
            self._datapath.host_policy(subject, mac=node.host_mac, net_mac=node.net_mac)
            self._datapath.masquerade_exclude(node.masquerade_exclude)

    def host_subject(self) -> int:
        """The subject that the node itself is under; 0: none."""
        with refusals(), self._using:
            return self._datapath.host_subject()

    def set_host_subject(self, subject: int) -> None:
        """Puts the node itself under a subject; 0: under none."""
        with refusals(), self._using:
            self._datapath.host_policy(subject)

    # -- programs and maps

    def reload(self, *, rebuild: bool) -> ReloadReport:
        """Loads the programs and moves every device of the node to them."""
        started = time.perf_counter()
        with self._walking, self._using:
            report = self._exchange(rebuild=rebuild)
            programs = tuple(self.programs())
        return ReloadReport(
            programs,
            report.endpoints,
            time.perf_counter() - started,
            report.attach_seconds,
            tuple(migrated.name for migrated in report.migrated),
            report.adopted,
        )

    def resize_map(self, name: str, max_entries: int) -> MapInfo:
        """Gives a map another size."""
        with self._walking, self._using:
            found = self._map(name)
            self._check_size(found, max_entries)
            before = dict(self._sizes.operator)
            wanted = {each: size for each, size in before.items() if each != name}
            if max_entries:
                wanted[name] = max_entries
            try:
                # First, so that a loader that dies between begins again with what was asked for.
                self._sizes.save(wanted)
                self._exchange(rebuild=False)
            except (DatapathError, OSError) as problem:
                self._sizes.save(before)
                if isinstance(problem, OSError):
                    raise DatapathError(f"resize map {name}: {problem}", map=name) from problem
                raise
            (status,) = (each for each in self._datapath.maps() if each.name == name)
        return replace(map_info(status), entries=count_elements(status.id))

    def map_entries(self, name: str, limit: int) -> Iterator[MapRow]:
        """What a map holds."""
        with refusals(), self._using:
            found = self._map(name)
            if not can_list(found.definition):
                raise MapHasNoEntries(
                    f"map {name} is a {found.definition.type_name}, which has no entries to list", map=name
                )
            number = found.id
        return self._rows(name, number, limit)

    def _rows(self, name: str, number: int, limit: int) -> Iterator[MapRow]:
        with refusals():
            for row in dump(name, number, limit):
                yield MapRow(row.key, row.value, row.key_json, row.value_json)

    def _map(self, name: str) -> Map:
        found = self._datapath.map_named(name)
        if found is None:
            known = ", ".join(sorted(each.name for each in self._datapath.maps()))
            raise MapNotFound(f"there is no map {name}; the maps are {known}", map=name)
        return found

    def _check_size(self, found: Map, max_entries: int) -> None:
        kind = found.definition.type_name
        if kind in ("array", "percpu_array") or not found.definition.max_entries:
            raise MapNotResizable(f"the programs count on the size of map {found.name}", map=found.name)
        if max_entries < 0 or max_entries > _MAP_ENTRIES_MOST:
            raise MapSizeInvalid(
                f"map {found.name} cannot have {max_entries} entries; expected 1 to {_MAP_ENTRIES_MOST}, or "
                "0 for the size that the programs declare",
                map=found.name,
                max_entries=str(max_entries),
            )
        page = os.sysconf("SC_PAGE_SIZE")
        if kind == RING_BUFFER and max_entries and (max_entries % page or max_entries & (max_entries - 1)):
            raise MapSizeInvalid(
                f"map {found.name} cannot have {max_entries} bytes; expected a power of two of at least "
                f"{page}, since it is a ring buffer",
                map=found.name,
                max_entries=str(max_entries),
            )
        if max_entries and kind != RING_BUFFER:
            with refusals():
                check_room(found, replace(found.definition, max_entries=max_entries))

    def _exchange(self, *, rebuild: bool) -> LoadReport:
        with refusals():
            fresh = self._reopen(rebuild=rebuild, map_sizes=self._sizes.merged())
            report = fresh.report
            if report.adopted and report.recovered is Recovered.NOTHING:
                # What is open is in force.
                fresh.close()
                return report
            old, self._datapath = self._datapath, fresh
            for events in list(self._events):
                events.follow(fresh)
        old.close()
        return report

    def stray_pins(self, devices: Collection[str]) -> list[StrayPin]:
        """Pins that nothing in force needs."""
        with refusals(), self._walking:
            own = self._datapath
            found = find_stray_pins(
                own.pins,
                maps={found.name for found in own.maps()},
                programs={program.name for program in own.programs()},
                devices={*devices, *(device for device, *_ in own.places())},
            )
        return [StrayPin(stray.kind, stray.path, stray.detail) for stray in found]

    def remove_stray_pin(self, stray: StrayPin) -> None:
        """Removes what :meth:`stray_pins` has found. Raises OSError."""
        with self._walking:
            remove_stray_pin(self._datapath.pins, stray.path)

    def collect_connections(self) -> Collected:
        """Removes expired connections."""
        with refusals(), self._walking:
            stats = self._datapath.conntrack_gc(time.monotonic())
        return Collected(stats.seen, stats.removed)

    def connections(self, limit: int) -> tuple[list[TrackedConnection], int]:
        """At most ``limit`` connections, and how many there are."""
        with refusals(), self._walking:
            found = self._datapath.conntrack()
        now = time.monotonic()
        return [
            TrackedConnection(
                source=entry.source,
                source_port=entry.source_port,
                destination=entry.destination,
                destination_port=entry.destination_port,
                protocol=entry.protocol,
                expires_in=max(entry.expires - now, 0.0),
                closing=entry.closing,
            )
            for entry in found[:limit]
        ], len(found)

    def programs(self) -> list[ProgramInfo]:
        """Loaded programs."""
        with refusals(), self._using:
            found = self._datapath.programs()
        return [
            ProgramInfo(
                program.name,
                program.id,
                program.tag,
                program.verified_insns,
                tuple(device_name(ifindex) for ifindex in program.devices),
                program.instructions,
                program.memory_bytes,
                program.load_time,
                tuple(
                    ProgramAttachment(device_name(each.ifindex), each.hook, each.kind)
                    for each in program.attachments
                ),
            )
            for program in found
        ]

    def maps(self, *, count: bool = True) -> list[MapInfo]:
        """Maps; with ``count`` their entries are counted, which takes milliseconds for large ones."""
        with refusals(), self._using:
            found = [map_info(each) for each in self._datapath.maps()]
        if not count:
            return found
        # Beside everything else: a map that is exchanged meanwhile goes uncounted.
        with refusals():
            return [replace(each, entries=count_elements(each.id)) for each in found]

    def traffic(self) -> list[TrafficCount]:
        """Packets and bytes by reason and direction."""
        with refusals(), self._using:
            found = self._datapath.metrics()
        return [
            TrafficCount(metric.reason_name, metric.reason, metric.direction, metric.packets, metric.bytes)
            for metric in found
            # A lost event is no packet: its packet is counted under what became of it.
            if metric.packets and metric.reason != EVENT_LOST
        ]

    def lost_events(self) -> int:
        """How many events found the ring buffer full."""
        with refusals(), self._using:
            found = self._datapath.metrics()
        return sum(metric.packets for metric in found if metric.reason == EVENT_LOST)

    def open_events(self, callback: Callable[[PacketReport], None]) -> EventSource:
        """Starts to read events."""

        def take(event: Event) -> None:
            callback(packet_report(event))

        with refusals(), self._using:
            made = _Events(self._datapath.events(take), self)
            self._events.add(made)
            return made

    def want_events(self, wanted: bool, *, trace: bool = False) -> None:
        """Lets programs make events, and with ``trace`` those of flows that begin and end, or none."""
        with refusals(), self._using:
            self._datapath.want_events(wanted, trace=trace)

    def close(self) -> None:
        """Lets go of everything; what is pinned stays and forwards."""
        with self._walking, self._using:
            self._datapath.close()


class _Events:
    """The reader, and the switch that goes with it in whichever datapath has the maps by now."""

    def __init__(self, reader: EventReader, kernel: Kernel) -> None:
        self._reader = reader
        self._kernel = kernel

    def fileno(self) -> int:
        return self._reader.fileno()

    def consume(self, limit: int) -> int:
        return self._reader.consume(limit)

    def trace(self, wanted: bool) -> None:
        self._kernel.want_events(True, trace=wanted)

    def follow(self, datapath: KernelDatapath) -> None:
        """Reads what these programs report too, through the same descriptor."""
        events = datapath.map_named("events")
        if events is not None:
            self._reader.follow(events.id, events.fd)

    def close(self) -> None:
        self._reader.close()
        self._kernel.want_events(False)
