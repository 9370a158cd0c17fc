"""The node's datapath: its programs, its maps, and what hangs on which device.

Everything here is synchronous and costs microseconds, but for :meth:`KernelDatapath.open` (clang and the
verifier) and the dumps of large maps. Threads may share it but for opening and closing.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from services.loader.bpf.attach import Attachment, Hook, Ownership, attachments
from services.loader.bpf.compiler import PREBUILT_DIR
from services.loader.bpf.config import NodeConfig
from services.loader.bpf.drop_reasons import reason_name
from services.loader.bpf.events import Event, EventReader
from services.loader.bpf.layout import (
    CT_ENTRY_EXPIRES,
    ENDPOINT_NETKIT,
    METRIC_CODEC,
    NODE_EVENTS,
    NODE_STATE_CODEC,
    NODE_TRACE,
    CtEntry,
    Direction,
    EndpointRow,
    IpcacheValue,
    PolicyKey,
    PolicyValue,
    SubjectRow,
    address_text,
    ipv4_bytes,
    ipv6_bytes,
    pack_failsafe_key,
    pack_lpm_key,
    seconds_to_ticks,
    split_prefix,
    unpack_lpm_key,
)
from services.loader.bpf.load_report import LoadReport, ObjectReport
from services.loader.bpf.maps import Map, charged_bytes
from services.loader.bpf.nat import EXCLUDED, collect, exclusion_key
from services.loader.bpf.native import lib
from services.loader.bpf.netkit import is_netkit
from services.loader.bpf.objects import load_time
from services.loader.bpf.opening import InKernel, Request, open_in_kernel
from services.loader.bpf.pins import PinDirectory, remove_pins
from services.loader.bpf.slots import EndpointSlots
from services.loader.bpf.subjects import SubjectRows
from services.loader.bpf.switching import AttachOptions, DevicePlace, Switchboard

__all__ = ["KernelDatapath", "LoadReport", "NodeConfig", "ObjectReport", "remove_pins"]

SOURCES = ("bpf_lxc.c", "bpf_overlay.c", "bpf_host.c")

HOST_DEVICE = "fimbria_host"
OVERLAY_DEVICE = "fimbria_vxlan"

# Programs of the node's own devices: by device, hook and name. Those of NICs follow from NodeConfig.
_HOST_PROGRAMS = ((Hook.EGRESS, "from_host"), (Hook.INGRESS, "to_host"))
_OVERLAY_PROGRAMS = ((Hook.INGRESS, "from_overlay"), (Hook.EGRESS, "to_overlay"))
_NIC_PROGRAMS = ((Hook.INGRESS, "from_netdev"), (Hook.EGRESS, "to_netdev"))

_ID_HOST = 1
_HOST_ENDPOINT_ID = 0xFFFFFFFF

_CT_MAPS = ("ct4", "ct6")
_NAT_MAPS = ("nat4", "nat6")
_BLOCK_MAPS = ("block4", "block6")

_PER_DIRECTION = struct.Struct("=Q")

_RINGBUF = 27  # BPF_MAP_TYPE_RINGBUF: the one map here that has no elements to count


@dataclass(frozen=True, slots=True)
class ProgramStatus:
    """A program in force, and the devices (by ifindex) that it is attached to. ``instructions`` as the
    verifier left them; ``memory_bytes`` is what the kernel charges; ``load_time`` in seconds since 1970.
    """

    name: str
    id: int
    tag: str
    verified_insns: int
    devices: tuple[int, ...]
    instructions: int = 0
    memory_bytes: int = 0
    load_time: float = 0.0
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True)
class MapStatus:
    """A map. ``entries`` is None where it was not counted; ``memory_bytes`` is what the kernel charges;
    ``resized``: it has not the size that the programs declare.
    """

    name: str
    id: int
    type: str
    key_size: int
    value_size: int
    max_entries: int
    entries: int | None
    flags: int = 0
    memory_bytes: int = 0
    resized: bool = False


@dataclass(frozen=True, slots=True)
class Metric:
    """Packets and bytes of one reason in one direction, all CPUs together."""

    reason: int
    reason_name: str
    direction: Direction
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class GcStats:
    """What a round of garbage collection saw and removed."""

    seen: int
    removed: int


class KernelDatapath:
    """The datapath of one node, open. Make it with :meth:`open`."""

    def __init__(
        self,
        config: NodeConfig,
        pins: PinDirectory,
        found: InKernel,
        devices: Sequence[tuple[str, int]] = (),
        attach: AttachOptions = AttachOptions(),
    ) -> None:
        self.config = config
        self.pins = pins
        self.devices = tuple(devices)
        self.report = found.report
        self._state_lock = threading.Lock()
        self._programs = found.programs
        self._maps = found.maps
        self._resized = found.resized
        own = [DevicePlace(*each) for each in _places(config, devices)]
        self._board = Switchboard(pins, own, attach)
        self._slots = EndpointSlots(self._maps, self._next_generation)
        self._subjects = SubjectRows(self._maps, self._next_generation)

    @classmethod
    def open(
        cls,
        config: NodeConfig,
        *,
        pin_dir: str,
        source_dir: str,
        cache_dir: str,
        devices: Sequence[tuple[str, int]] = (),
        flags: Sequence[str] = (),
        state_dir: str = "",
        rebuild: bool = False,
        attach: AttachOptions = AttachOptions(),
        prebuilt_dir: str = PREBUILT_DIR,
    ) -> KernelDatapath:
        """Compiles, loads, pins and attaches; carries over what is pinned, replaces in place, and moves every
        device to the new programs, those of the endpoints that the maps know too.

        ``devices`` are the node's NICs, by name and ifindex; ``flags`` are more of the compiler's. Call it in
        the node's network namespace. With a ``state_dir`` it remembers there what it loaded, and a next call
        with the same that finds it in the kernel loads nothing, unless ``rebuild`` has everything compiled
        anew.

        Raises DatapathUnavailable (no clang, no bpffs, no privilege), MapMismatch, MapFull, VerifierError or
        BpfError; then what was in force before is.
        """
        pins = PinDirectory(pin_dir)
        places = [DevicePlace(*each) for each in _places(config, devices)]
        pins.make((HOST_DEVICE, OVERLAY_DEVICE, *(name for name, _ in devices)))
        request = Request(
            config, pins, SOURCES, source_dir, cache_dir, places, flags, state_dir, rebuild, attach,
            prebuilt_dir,
        )  # fmt: skip
        found = open_in_kernel(request, _align)
        with ExitStack() as undo:
            undo.callback(_close_all, found)
            datapath = cls(config, pins, found, devices, attach)
            # Programs that were loaded just now may keep flows otherwise than the ones before.
            datapath._next_generation()
            undo.pop_all()
        return datapath

    def places(self) -> list[tuple[str, int, Hook, str]]:
        """(device, ifindex, hook, program) of the node's own devices, of those programs that there are."""
        return [each for each in _places(self.config, self.devices) if each[3] in self._programs]

    def close(self) -> None:
        """Closes every descriptor. What is pinned or attached stays and forwards."""
        for program in self._programs.values():
            os.close(program.fd)
        for bpf_map in self._maps.values():
            bpf_map.close()
        self._programs, self._maps = {}, {}

    def attach_endpoint(self, row: EndpointRow) -> None:
        """Writes the endpoint's rows and attaches to its device; again is fine and replaces in place.

        The device's row comes first, since a device without one passes nothing; the address's last, since
        with it others begin to deliver. Raises BpfError; ENODEV for a device that is not there.
        """
        netkit = is_netkit(row.ifindex)
        row = replace(row, flags=row.flags | ENDPOINT_NETKIT if netkit else row.flags & ~ENDPOINT_NETKIT)
        self._slots.put_device(row)
        self._board.attach_endpoint(
            row.ifindex, {name: each.fd for name, each in self._programs.items()}, netkit=netkit
        )
        self._slots.put_addresses(row)

    def update_endpoint(self, row: EndpointRow) -> None:
        """Writes the rows of an endpoint that is attached, for a new identity or subject."""
        present = self._slots.get(row.ifindex)
        if present is not None:
            # The device stays what it is.
            row = replace(row, flags=row.flags | present.flags & ENDPOINT_NETKIT)
        self._slots.put_device(row)
        self._slots.put_addresses(row)

    def detach_endpoint(self, ifindex: int, *addresses: str) -> None:
        """Removes the endpoint's rows: its device passes nothing from then on. What is not there is skipped.

        An address that another device has by now keeps its row. ``addresses`` are those that it had in case
        that the device's own row is gone.
        """
        for address in addresses:
            if address:
                self._slots.remove_address(address, ifindex)
        self._slots.remove(ifindex)
        self._board.forget_endpoint(ifindex)

    def astray(self) -> list[int]:
        """Interface indexes of endpoints that the maps do not lead to as they were written."""
        return self._slots.astray()

    def endpoints(self) -> list[EndpointRow]:
        """Every endpoint that has a device's row."""
        return self._slots.rows()

    def host_subject(self) -> int:
        """The subject that the node itself is under; 0: none."""
        return self._slots.host().subject

    def host_policy(self, subject: int, *, mac: str = "", net_mac: str = "") -> None:
        """Puts the node itself under a subject's policy; 0 under none, then nothing of its is judged.

        ``mac`` is that of ``fimbria_host``, ``net_mac`` of ``fimbria_net``; "" leaves them as they are.
        """
        held = self._slots.host()
        self._slots.put_host(
            EndpointRow(
                self.config.host_ifindex,
                self.config.node_ipv4,
                _ID_HOST,
                subject,
                _HOST_ENDPOINT_ID,
                mac or held.pod_mac,
                net_mac or held.host_mac,
                ipv6=self.config.node_ipv6,
            )
        )

    def failsafe_put(self, ports: Iterable[tuple[Direction, int, int]]) -> None:
        """Replaces the ports, as (direction, protocol, port), that no host policy can close."""
        wanted = {pack_failsafe_key(*each) for each in ports}
        table = self._maps["failsafe"]
        for key in wanted:
            table.put(key, _u32(1))
        for key, _ in list(table.items()):
            if key not in wanted:
                table.delete(key)

    def policy_put(self, entries: Sequence[tuple[PolicyKey, PolicyValue]]) -> None:
        """Adds or replaces entries. Raises BpfError; E2BIG for a full map, then some may be written."""
        self._maps["policy"].put_many([(key.pack(), value.pack()) for key, value in entries])

    def policy_delete(self, keys: Sequence[PolicyKey]) -> int:
        """Removes entries; returns how many were there."""
        return self._maps["policy"].delete_many([key.pack() for key in keys])

    def policy_entries(self, instance: int | None = None) -> dict[PolicyKey, PolicyValue]:
        """The entries of one instance, or all."""
        wanted = None if instance is None else _u32(instance)
        return {
            PolicyKey.unpack(key): PolicyValue.unpack(value)
            for key, value in self._maps["policy"].items()
            if wanted is None or key.startswith(wanted)
        }

    def subject_put(self, subject: int, row: SubjectRow) -> None:
        """Puts a policy into force: at one write, for each packet either wholly before or wholly after."""
        self._subjects.put(subject, row)

    def subject_get(self, subject: int) -> SubjectRow | None:
        """A subject's row."""
        return self._subjects.get(subject)

    def subjects(self) -> dict[int, SubjectRow]:
        """Every subject's row."""
        return self._subjects.all()

    def subject_delete(self, subject: int) -> bool:
        """Removes a subject's row: its endpoints pass nothing from then on but what the host needs."""
        return self._subjects.delete(subject)

    def masquerade_exclude(self, cidrs: Iterable[str]) -> None:
        """Replaces the destinations that pods reach with their own addresses. Raises ValueError for what is
        no prefix; then nothing has changed.
        """
        wanted = {exclusion_key(cidr) for cidr in cidrs}
        for family in (4, 6):
            table = self._maps.get(f"nat_exclude{family}")
            if table is None:
                # Without masquerading all destinations are excluded.
                continue
            keys = {key for found, key in wanted if found == family}
            for key in keys:
                table.put(key, EXCLUDED)
            for key, _ in list(table.items()):
                if key not in keys:
                    table.delete(key)

    def ipcache_put(self, entries: Iterable[tuple[str, IpcacheValue]]) -> None:
        """Adds or replaces what is at addresses and prefixes of either family.

        Raises ValueError for one that is no prefix.
        """
        by_map: dict[str, list[tuple[bytes, bytes]]] = {}
        for prefix, value in entries:
            name, key = _ipcache_place(prefix)
            by_map.setdefault(name, []).append((key, value.pack()))
        for name, elements in by_map.items():
            self._maps[name].put_many(elements)
        if by_map:
            self._next_generation()

    def ipcache_delete(self, prefixes: Iterable[str]) -> int:
        """Removes addresses and prefixes; returns how many were there."""
        by_map: dict[str, list[bytes]] = {}
        for prefix in prefixes:
            name, key = _ipcache_place(prefix)
            by_map.setdefault(name, []).append(key)
        removed = sum(self._maps[name].delete_many(keys) for name, keys in by_map.items())
        if by_map:
            self._next_generation()
        return removed

    def ipcache(self) -> dict[str, IpcacheValue]:
        """Everything in the ipcache, by prefix; addresses end in ``/32`` or ``/128``."""
        found = {}
        for name in ("ipcache4", "ipcache6"):
            for key, value in self._maps[name].items():
                found[f"{address_text(key)}/{len(key) * 8}"] = IpcacheValue.unpack(value)
            for key, value in self._maps[f"{name}_lpm"].items():
                found[unpack_lpm_key(key)] = IpcacheValue.unpack(value)
        return found

    def blocks_put(self, numbers: Iterable[tuple[str, int]]) -> None:
        """Adds or replaces the numbers of prefixes of either family that policies know addresses by.

        Raises ValueError for one that is no prefix.
        """
        by_map: dict[str, list[tuple[bytes, bytes]]] = {}
        for prefix, number in numbers:
            name, key = _block_place(prefix)
            by_map.setdefault(name, []).append((key, _u32(number)))
        for name, elements in by_map.items():
            self._maps[name].put_many(elements)
        if by_map:
            self._next_generation()

    def blocks_delete(self, prefixes: Iterable[str]) -> int:
        """Removes such prefixes; returns how many were there."""
        by_map: dict[str, list[bytes]] = {}
        for prefix in prefixes:
            name, key = _block_place(prefix)
            by_map.setdefault(name, []).append(key)
        removed = sum(self._maps[name].delete_many(keys) for name, keys in by_map.items())
        if by_map:
            self._next_generation()
        return removed

    def blocks(self) -> dict[str, int]:
        """Every such prefix with its number."""
        return {
            unpack_lpm_key(key): _int(value)
            for name in _BLOCK_MAPS
            for key, value in self._maps[name].items()
        }

    def _node_state(self) -> tuple[int, int]:
        data = self._maps["node_state"].get(_u32(0))
        generation, flags = NODE_STATE_CODEC.unpack(data) if data is not None else (0, 0)
        return int(generation), int(flags)

    def _next_generation(self) -> None:
        """Flows look again at what they know. 0 is left out: it stands for "not set"."""
        with self._state_lock:
            generation, flags = self._node_state()
            following = (generation + 1) & 0xFFFFFFFF or 1
            self._maps["node_state"].put(_u32(0), NODE_STATE_CODEC.pack(following, flags))

    def _set_flags(self, wanted: int, of: int) -> None:
        with self._state_lock:
            generation, flags = self._node_state()
            self._maps["node_state"].put(_u32(0), NODE_STATE_CODEC.pack(generation, flags & ~of | wanted))

    def conntrack(self) -> list[CtEntry]:
        """Every flow, those that have expired and are not yet collected included."""
        return [CtEntry.unpack(key, value) for name in _CT_MAPS for key, value in self._maps[name].items()]

    def conntrack_gc(self, now: float) -> GcStats:
        """Removes flows that expired before ``now`` (CLOCK_MONOTONIC, seconds).

        A few milliseconds and 1 µs a flow.
        """
        ticks = seconds_to_ticks(now)
        seen = removed = 0
        for name in _CT_MAPS:
            table = self._maps[name]
            expired = []
            for key, value in table.items():
                seen += 1
                if _expired(value, ticks):
                    expired.append(key)
            for key in expired:
                # Once more: a packet may just have started the flow anew.
                current = table.get(key)
                if current is not None and _expired(current, ticks):
                    removed += table.delete(key)
        # What was translated for a flow goes with it.
        for nat, flows in zip(_NAT_MAPS, _CT_MAPS, strict=True):
            if nat not in self._maps:
                continue
            collect(self._maps[nat], self._maps[flows], ticks)
        return GcStats(seen, removed)

    def conntrack_purge(self, addresses: Iterable[str]) -> int:
        """Removes every flow from or to these addresses;

        Returns how many. For addresses that change hands.
        """
        wanted = {ipv6_bytes(each) if ":" in each else ipv4_bytes(each) for each in addresses}
        removed = 0
        for name, size in zip(_CT_MAPS, (4, 16), strict=True):
            table = self._maps[name]
            keys = [key for key, _ in table.items() if key[:size] in wanted or key[size : 2 * size] in wanted]
            removed += table.delete_many(keys)
        return removed

    def events(self, callback: Callable[[Event], None], *, trace: bool = False) -> EventReader:
        """Starts reading events; there is one reader at a time. Without one the programs make none.

        With ``trace`` the beginnings and ends of flows are reported too.
        """
        reader = EventReader(self._maps["events"].fd, callback, lambda: self.want_events(False))
        self.want_events(True, trace=trace)
        return reader

    def want_events(self, wanted: bool, *, trace: bool = False) -> None:
        """Lets programs make events, and with ``trace`` those of flows that begin and end, or none. After
        closing it does nothing.
        """
        if self._maps:
            flags = NODE_EVENTS | (NODE_TRACE if trace else 0) if wanted else 0
            self._set_flags(flags, NODE_EVENTS | NODE_TRACE)

    def metrics(self) -> list[Metric]:
        """What was forwarded and dropped since the maps were made, by reason and direction;

        Only what happened.
        """
        found = []
        size = METRIC_CODEC.size
        for key, value in self._maps["metrics"].items_of(size * lib.libbpf_num_possible_cpus()):
            cpus = [METRIC_CODEC.unpack_from(value, offset) for offset in range(0, len(value), size)]
            for direction in Direction:
                counts = [_PER_DIRECTION.unpack_from(each, direction * 8) for cpu in cpus for each in cpu]
                packets = sum(count for (count,) in counts[::2])
                octets = sum(count for (count,) in counts[1::2])
                if packets:
                    reason = _int(key)
                    found.append(Metric(reason, reason_name(reason), direction, packets, octets))
        return found

    def programs(self) -> list[ProgramStatus]:
        """The programs in force, with the places where it is these that run and not older ones."""
        devices = [ifindex for _, ifindex, _, _ in self.places()] + [row.ifindex for row in self.endpoints()]
        mine = Ownership((), [program.id for program in self._programs.values()])
        where: dict[int, list[Attachment]] = {}
        for here in attachments(devices, mine).values():
            for each in here:
                where.setdefault(each.program, []).append(each)
        return [
            ProgramStatus(
                p.name, p.id, p.tag, p.verified_insns,
                tuple(dict.fromkeys(each.ifindex for each in where.get(p.id, ()))), p.instructions,
                charged_bytes(p.fd), load_time(p.fd), tuple(where.get(p.id, ())),
            )
            for p in self._programs.values()
        ]  # fmt: skip

    def maps(self, *, count: bool = False) -> list[MapStatus]:
        """The maps; with ``count`` their elements are counted, which takes milliseconds for large ones."""
        return [
            MapStatus(
                m.name, m.id, m.definition.type_name, m.definition.key_size, m.definition.value_size,
                m.definition.max_entries, _count(m) if count else None, m.definition.flags,
                charged_bytes(m.fd), m.name in self._resized,
            )
            for m in self._maps.values()
        ]  # fmt: skip

    def map_named(self, name: str) -> Map | None:
        """An open map; it stays this object's."""
        return self._maps.get(name)

    def program_fd(self, name: str) -> int:
        """The descriptor of a program, for test runs; it stays this object's."""
        return self._programs[name].fd


def _u32(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


def _int(key: bytes) -> int:
    return int.from_bytes(key, sys.byteorder)


def _expired(entry: bytes, ticks: int) -> bool:
    return bool(CT_ENTRY_EXPIRES.unpack_from(entry)[0] < ticks)


def _ipcache_place(prefix: str) -> tuple[str, bytes]:
    network, length = split_prefix(prefix)
    name = "ipcache4" if len(network) == 4 else "ipcache6"
    return (name, network) if length == len(network) * 8 else (f"{name}_lpm", pack_lpm_key(network, length))


def _block_place(prefix: str) -> tuple[str, bytes]:
    network, length = split_prefix(prefix)
    return _BLOCK_MAPS[len(network) != 4], pack_lpm_key(network, length)


def _count(bpf_map: Map) -> int | None:
    if bpf_map.definition.type == _RINGBUF or bpf_map.definition.type_name in ("array", "percpu_array"):
        return None
    return sum(1 for _ in bpf_map.items())


def _places(config: NodeConfig, devices: Sequence[tuple[str, int]]) -> list[tuple[str, int, Hook, str]]:
    places = [(HOST_DEVICE, config.host_ifindex, *each) for each in _HOST_PROGRAMS]
    if config.vxlan_ifindex:
        places += [(OVERLAY_DEVICE, config.vxlan_ifindex, *each) for each in _OVERLAY_PROGRAMS]
    for name, ifindex in devices:
        places += [(name, ifindex, *each) for each in _NIC_PROGRAMS]
    return places


def _align(maps: Mapping[str, Map]) -> None:
    """What several maps say together, they say alike: a loader may have died between its writes."""
    EndpointSlots(maps, _nothing).align()
    SubjectRows(maps, _nothing).align()


def _nothing() -> None:
    pass


def _close_all(found: InKernel) -> None:
    for program in found.programs.values():
        os.close(program.fd)
    for each in found.maps.values():
        each.close()
