"""The node's datapath: its programs, its maps, and what hangs on which device.

Everything here is synchronous and costs microseconds, but for :meth:`KernelDatapath.open` (clang and the
verifier) and the dumps of large maps. Threads may share it but for opening and closing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from services.loader.bpf.attach import (
    Hook,
    attach_filters,
    attach_link,
    filter_program,
    link_program,
    pin_replacing,
)
from services.loader.bpf.compiler import Compiled, compile_sources
from services.loader.bpf.config import NodeConfig
from services.loader.bpf.drop_reasons import reason_name
from services.loader.bpf.events import Event, EventReader
from services.loader.bpf.layout import (
    CT_ENTRY_EXPIRES,
    METRIC_CODEC,
    METRICS_DIRECTIONS,
    NODE_STATE_CODEC,
    CtEntry,
    Direction,
    EndpointRow,
    IpcacheValue,
    PolicyKey,
    PolicyValue,
    SubjectRow,
    ipv4_bytes,
    ipv4_text,
    pack_lpm_key,
    split_prefix,
    unpack_lpm_key,
)
from services.loader.bpf.maps import Map
from services.loader.bpf.native import lib
from services.loader.bpf.objects import LoadedObject, Program, load_object
from services.loader.bpf.pins import PinDirectory, remove_pins

__all__ = ["KernelDatapath", "LoadReport", "NodeConfig", "remove_pins"]

SOURCES = ("bpf_lxc.c", "bpf_overlay.c", "bpf_host.c")

HOST_DEVICE = "fimbria_host"
OVERLAY_DEVICE = "fimbria_vxlan"

_RINGBUF = 27  # BPF_MAP_TYPE_RINGBUF: the one map here that has no elements to count


@dataclass(frozen=True, slots=True)
class ObjectReport:
    """What it took to get one object into the kernel. Seconds; ``programs`` as loaded."""

    source: str
    cache_hit: bool
    compile_seconds: float
    load_seconds: float
    programs: tuple[Program, ...]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What it took to open the datapath; ``attach_seconds`` is for the node's own devices."""

    objects: tuple[ObjectReport, ...]
    attach_seconds: float

    @property
    def cache_hit(self) -> bool:
        """Whether nothing had to be compiled."""
        return all(report.cache_hit for report in self.objects)

    @property
    def verified_insns(self) -> dict[str, int]:
        """Instructions that the verifier went through, by program."""
        return {
            program.name: program.verified_insns for report in self.objects for program in report.programs
        }


@dataclass(frozen=True, slots=True)
class ProgramStatus:
    """A program in force, and the devices (by ifindex) that it is attached to."""

    name: str
    id: int
    tag: str
    verified_insns: int
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MapStatus:
    """A map. ``entries`` is None where it was not counted."""

    name: str
    id: int
    type: str
    key_size: int
    value_size: int
    max_entries: int
    entries: int | None


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

    def __init__(self, config: NodeConfig, pins: PinDirectory, loaded: Sequence[LoadedObject]) -> None:
        self.config = config
        self.pins = pins
        self.report = LoadReport((), 0.0)
        self._programs: dict[str, Program] = {}
        self._maps: dict[str, Map] = {}
        self._clsact_devices: set[int] = set()
        for obj in loaded:
            self._programs.update(obj.programs)
            for name, fd in obj.maps.items():
                # The same pinned map, once per object that uses it.
                if name in self._maps:
                    os.close(fd)
                else:
                    self._maps[name] = Map(name, fd)

    @classmethod
    def open(cls, config: NodeConfig, *, pin_dir: str, source_dir: str, cache_dir: str) -> KernelDatapath:
        """Compiles, loads, pins and attaches to the node's devices; reuses what is pinned, replaces in place.

        Call it in the node's network namespace. Endpoints that are attached keep running the programs they
        have until :meth:`attach_endpoint` is called for them again. Raises DatapathUnavailable (no clang, no
        bpffs, no privilege), MapMismatch, VerifierError or BpfError.
        """
        pins = PinDirectory(pin_dir)
        pins.make((HOST_DEVICE, OVERLAY_DEVICE))
        compiled = compile_sources(source_dir, SOURCES, cache_dir)
        constants = config.constants()
        loaded: list[LoadedObject] = []
        with ExitStack() as undo:
            for source in compiled:
                obj = load_object(
                    source.path, map_dir=pins.maps, config=constants, map_sizes=config.map_sizes
                )
                undo.callback(_close_all, obj)
                loaded.append(obj)
            undo.pop_all()
            datapath = cls(config, pins, loaded)
        with ExitStack() as undo:
            undo.callback(datapath.close)
            datapath._start_generation()
            started = time.perf_counter()
            datapath._attach_node()
            for program in datapath._programs.values():
                pin_replacing(program.fd, os.path.join(pins.programs, program.name))
            datapath.report = _report(compiled, loaded, time.perf_counter() - started)
            undo.pop_all()
        return datapath

    def _attach_node(self) -> None:
        places = [(HOST_DEVICE, self.config.host_ifindex, Hook.EGRESS, "from_host")]
        if self.config.vxlan_ifindex:
            places.append((OVERLAY_DEVICE, self.config.vxlan_ifindex, Hook.INGRESS, "from_overlay"))
        for device, ifindex, hook, name in places:
            program = self._programs[name]
            if not attach_link(self.pins.link(device, name), ifindex, hook, program.fd):
                attach_filters(ifindex, {hook: program.fd})

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
        data = row.pack()
        self._maps["endpoint_dev"].put(_u32(row.ifindex), data)
        attach_filters(
            row.ifindex,
            {
                Hook.INGRESS: self._programs["from_container"].fd,
                Hook.EGRESS: self._programs["to_container"].fd,
            },
        )
        self._maps["endpoint_ip4"].put(ipv4_bytes(row.ipv4), data)

    def update_endpoint(self, row: EndpointRow) -> None:
        """Writes the rows of an endpoint that is attached, for a new identity or subject."""
        data = row.pack()
        self._maps["endpoint_dev"].put(_u32(row.ifindex), data)
        self._maps["endpoint_ip4"].put(ipv4_bytes(row.ipv4), data)

    def detach_endpoint(self, ifindex: int, ipv4: str) -> None:
        """Removes the endpoint's rows: its device passes nothing from then on. What is not there is skipped.

        An address that another device has by now keeps its row.
        """
        by_address = self._maps["endpoint_ip4"]
        data = by_address.get(ipv4_bytes(ipv4))
        if data is not None and EndpointRow.unpack(data).ifindex == ifindex:
            by_address.delete(ipv4_bytes(ipv4))
        self._maps["endpoint_dev"].delete(_u32(ifindex))

    def endpoints(self) -> list[EndpointRow]:
        """Every endpoint that has a device's row."""
        return [EndpointRow.unpack(value) for _, value in self._maps["endpoint_dev"].items()]

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
        """Puts a policy into force: one write, for each packet either wholly before or wholly after."""
        self._maps["subject"].put(_u32(subject), row.pack())

    def subject_get(self, subject: int) -> SubjectRow | None:
        """A subject's row."""
        data = self._maps["subject"].get(_u32(subject))
        return SubjectRow.unpack(data) if data is not None else None

    def subjects(self) -> dict[int, SubjectRow]:
        """Every subject's row."""
        return {_int(key): SubjectRow.unpack(value) for key, value in self._maps["subject"].items()}

    def subject_delete(self, subject: int) -> bool:
        """Removes a subject's row: its endpoints pass nothing from then on but what the host needs."""
        return self._maps["subject"].delete(_u32(subject))

    def ipcache_put(self, entries: Iterable[tuple[str, IpcacheValue]]) -> None:
        """Adds or replaces what is at addresses and prefixes.

        Raises ValueError for one that is no IPv4 prefix.
        """
        exact, prefixes = [], []
        for prefix, value in entries:
            network, length = split_prefix(prefix)
            if length == 32:
                exact.append((network, value.pack()))
            else:
                prefixes.append((pack_lpm_key(network, length), value.pack()))
        self._maps["ipcache4"].put_many(exact)
        if prefixes:
            self._maps["ipcache4_lpm"].put_many(prefixes)
            self._next_generation()

    def ipcache_delete(self, prefixes: Iterable[str]) -> int:
        """Removes addresses and prefixes; returns how many were there."""
        exact, shorter = [], []
        for prefix in prefixes:
            network, length = split_prefix(prefix)
            if length == 32:
                exact.append(network)
            else:
                shorter.append(pack_lpm_key(network, length))
        removed = self._maps["ipcache4"].delete_many(exact)
        if shorter:
            removed += self._maps["ipcache4_lpm"].delete_many(shorter)
            self._next_generation()
        return removed

    def ipcache(self) -> dict[str, IpcacheValue]:
        """Everything in the ipcache, by prefix; addresses end in ``/32``."""
        found = {
            f"{ipv4_text(key)}/32": IpcacheValue.unpack(value)
            for key, value in self._maps["ipcache4"].items()
        }
        for key, value in self._maps["ipcache4_lpm"].items():
            found[unpack_lpm_key(key)] = IpcacheValue.unpack(value)
        return found

    def _generation(self) -> int:
        data = self._maps["node_state"].get(_u32(0))
        return int(NODE_STATE_CODEC.unpack(data)[0]) if data is not None else 0

    def _start_generation(self) -> None:
        if not self._generation():
            self._next_generation()

    def _next_generation(self) -> None:
        """Flows forget what they know of the trie. 0 is left out: it stands for "not set"."""
        following = (self._generation() + 1) & 0xFFFFFFFF or 1
        self._maps["node_state"].put(_u32(0), NODE_STATE_CODEC.pack(following))

    def conntrack(self) -> list[CtEntry]:
        """Every flow, those that have expired and are not yet collected included."""
        return [CtEntry.unpack(key, value) for key, value in self._maps["ct4"].items()]

    def conntrack_gc(self, now: float) -> GcStats:
        """Removes flows that expired before ``now`` (CLOCK_MONOTONIC, seconds).

        A few milliseconds and 1 µs a flow.
        """
        table = self._maps["ct4"]
        seen = removed = 0
        for key, value in table.items():
            seen += 1
            if not _expired(value, now):
                continue
            # Once more: a packet may just have started the flow anew.
            current = table.get(key)
            if current is not None and _expired(current, now):
                removed += table.delete(key)
        return GcStats(seen, removed)

    def conntrack_purge(self, addresses: Iterable[str]) -> int:
        """Removes every flow from or to these addresses;

        Returns how many. For addresses that change hands.
        """
        wanted = {ipv4_bytes(address) for address in addresses}
        keys = [key for key, _ in self._maps["ct4"].items() if key[:4] in wanted or key[4:8] in wanted]
        return self._maps["ct4"].delete_many(keys)

    def events(self, callback: Callable[[Event], None]) -> EventReader:
        """Starts reading events; there is one reader at a time."""
        return EventReader(self._maps["events"].fd, callback)

    def metrics(self) -> list[Metric]:
        """What was forwarded and dropped since the maps were made, by reason and direction;

        Only what happened.
        """
        found = []
        size = METRIC_CODEC.size
        for key, value in self._maps["metrics"].items_of(size * lib.libbpf_num_possible_cpus()):
            counts = [METRIC_CODEC.unpack_from(value, offset) for offset in range(0, len(value), size)]
            packets, octets = sum(count[0] for count in counts), sum(count[1] for count in counts)
            if packets:
                reason, direction = divmod(_int(key), METRICS_DIRECTIONS)
                found.append(Metric(reason, reason_name(reason), Direction(direction), packets, octets))
        return found

    def programs(self) -> list[ProgramStatus]:
        """The programs in force, with the devices where it is these that are attached and not older ones."""
        where: dict[int, list[int]] = {}
        places = [(endpoint.ifindex, hook) for endpoint in self.endpoints() for hook in Hook]
        places += [(self.config.host_ifindex, Hook.EGRESS), (self.config.vxlan_ifindex, Hook.INGRESS)]
        for ifindex, hook in places:
            program = filter_program(ifindex, hook) if ifindex else None
            if program is not None:
                where.setdefault(program, []).append(ifindex)
        for device, ifindex, name in (
            (HOST_DEVICE, self.config.host_ifindex, "from_host"),
            (OVERLAY_DEVICE, self.config.vxlan_ifindex, "from_overlay"),
        ):
            program = link_program(self.pins.link(device, name))
            if program is not None:
                where.setdefault(program, []).append(ifindex)
        return [
            ProgramStatus(p.name, p.id, p.tag, p.verified_insns, tuple(where.get(p.id, ())))
            for p in self._programs.values()
        ]

    def maps(self, *, count: bool = False) -> list[MapStatus]:
        """The maps; with ``count`` their elements are counted, which takes milliseconds for large ones."""
        return [
            MapStatus(
                m.name, m.id, m.definition.type_name, m.definition.key_size, m.definition.value_size,
                m.definition.max_entries, _count(m) if count else None,
            )
            for m in self._maps.values()
        ]  # fmt: skip

    def program_fd(self, name: str) -> int:
        """The descriptor of a program, for test runs; it stays this object's."""
        return self._programs[name].fd


def _u32(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


def _int(key: bytes) -> int:
    return int.from_bytes(key, sys.byteorder)


def _expired(entry: bytes, now: float) -> bool:
    return bool(CT_ENTRY_EXPIRES.unpack_from(entry)[0] < now)


def _count(bpf_map: Map) -> int | None:
    if bpf_map.definition.type == _RINGBUF or bpf_map.definition.type_name in ("array", "percpu_array"):
        return None
    return sum(1 for _ in bpf_map.items())


def _close_all(obj: LoadedObject) -> None:
    for fd in (*(program.fd for program in obj.programs.values()), *obj.maps.values()):
        os.close(fd)


def _report(
    compiled: Sequence[Compiled], loaded: Sequence[LoadedObject], attach_seconds: float
) -> LoadReport:
    objects = tuple(
        ObjectReport(
            source.source, source.cache_hit, source.seconds, obj.seconds, tuple(obj.programs.values())
        )
        for source, obj in zip(compiled, loaded, strict=True)
    )
    return LoadReport(objects, attach_seconds)
