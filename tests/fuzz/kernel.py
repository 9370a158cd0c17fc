"""The loader's datapath in a namespace of its own, given the same changes and packets as the model."""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from services.loader.bpf.compiler import compile_sources
from services.loader.bpf.datapath import KernelDatapath, NodeConfig, remove_pins
from services.loader.bpf.layout import (
    CtEntry,
    Direction,
    EndpointRow,
    IpcacheValue,
    PolicyKey,
    PolicyValue,
    SubjectRow,
    direction_shape,
)
from services.loader.bpf.maps import Map
from services.loader.bpf.native import ffi, lib
from services.loader.bpf.objects import load_object
from tests.fuzz.addresses import NODE4, NODE6, ROUTER4, ROUTER6
from tests.fuzz.changes import (
    Change,
    Collect,
    Expire,
    Purge,
    PutEndpoint,
    PutPeer,
    PutPolicy,
    RemoveEndpoint,
    RemovePeer,
    RemovePolicy,
)
from tests.fuzz.host import NIC, make_devices, new_namespace
from tests.fuzz.model.parsing import Tuple5
from tests.fuzz.model.programs import Input
from tests.fuzz.model.world import Endpoint, Policy
from tests.fuzz.packets import Devices
from tests.fuzz.topology import Variant
from tests.fuzz.trial import Outcome, Trials

_REPOSITORY = Path(__file__).resolve().parents[2]
_PINS = "/sys/fs/bpf/fimbria"
_numbers = itertools.count()

MTU = 1500
# Far apart, and longer than any session: when an entry expires tells its state, and none does by itself.
LIFETIMES = {"syn": 1_000_000, "established": 2_000_000, "closing": 3_000_000, "any": 4_000_000}
_MAP_SIZES = {
    "ct4": 65536, "ct6": 65536, "frag4": 8192, "frag6": 8192, "policy": 16384,
    "ipcache4": 1024, "ipcache6": 1024, "ipcache4_lpm": 256, "ipcache6_lpm": 256,
}  # fmt: skip
_FLAGS = ("-DFIMBRIA_TEST",)
PROGRAMS = ("from_container", "to_container", "from_overlay", "from_host")


@dataclass(frozen=True, slots=True)
class KnownFlow:
    """A flow as the kernel has it. Pairs: the initiator's first; ``sides`` are of (owner, identity)."""

    lifetime: str
    packets: tuple[int, int]
    octets: tuple[int, int]
    replied: bool
    closing: bool
    sides: tuple[tuple[int, int], tuple[int, int]]


class KernelNode:
    """A datapath, loaded. Use it in the thread and namespace where it was made, by :func:`open_node`."""

    def __init__(self, datapath: KernelDatapath, trials: Trials, devices: Devices, variant: Variant) -> None:
        self.datapath = datapath
        self.devices = devices
        self.variant = variant
        self._trials = trials
        self._maps = {name: _open_map(datapath, name) for name in os.listdir(datapath.pins.maps)}
        self._cpus = lib.libbpf_num_possible_cpus()
        self._metric = ffi.new("char[]", self._maps["metrics"].definition.value_size * self._cpus)
        self._metric_view = memoryview(ffi.buffer(self._metric)).cast("Q")
        self._metric_key = ffi.new("__u32 *")
        self._counts = {reason: self._count(reason) for reason in range(1, 256)}
        self._instances: dict[int, list[PolicyKey]] = {}
        self._forward = ffi.new("char[]", 16)
        self._forward_map = self._maps.get("test_forward")
        self._attached: set[int] = set()

    # Packets

    def run(self, given: Input) -> Outcome:
        """The program's work on a packet."""
        if self._forward_map is not None:
            self._forward_map.put(bytes(4), bytes(16))
        return self._trials.run(given)

    def forwarded(self) -> tuple[int, int, int, bytes] | None:
        """How the last packet was redirected: kind, ifindex, VNI, remote; None if the build does not say."""
        if self._forward_map is None:
            return None
        data = self._forward_map.get(bytes(4))
        assert data is not None
        return struct.unpack("=III4s", data)

    def dropped(self, likely: int) -> int:
        """Why the last packet was dropped, by the metrics; 0: nothing was counted.

        ``likely``, if it is not 0, is looked at first.
        """
        for reason in (likely, *self._counts) if likely else self._counts:
            count = self._count(reason)
            if count != self._counts[reason]:
                self._counts[reason] = count
                return reason
        return 0

    def _count(self, reason: int) -> int:
        self._metric_key[0] = reason
        lib.bpf_map_lookup_elem(self._maps["metrics"].fd, self._metric_key, self._metric)
        view = self._metric_view
        return sum(sum(view[cpu * 8 : cpu * 8 + 4]) for cpu in range(self._cpus))

    # Changes

    def apply(self, change: Change) -> None:
        """What the loader does."""
        datapath = self.datapath
        match change:
            case PutEndpoint(endpoint):
                self._put_endpoint(endpoint)
            case RemoveEndpoint(endpoint):
                datapath.detach_endpoint(endpoint.ifindex, *(text(a) for a in endpoint.addresses()))
            case PutPolicy(subject, instance, policy):
                self._put_policy(subject, instance, policy)
            case RemovePolicy(subject):
                datapath.subject_delete(subject)
            case PutPeer(network, length, peer):
                value = IpcacheValue(peer.identity, text(peer.tunnel))
                datapath.ipcache_put([(f"{text(network)}/{length}", value)])
            case RemovePeer(network, length):
                datapath.ipcache_delete([f"{text(network)}/{length}"])
            case Expire(flow):
                self._expire(flow)
            case Collect():
                datapath.conntrack_gc(time.monotonic())
            case Purge(address):
                datapath.conntrack_purge([text(address)])

    def _put_endpoint(self, endpoint: Endpoint) -> None:
        row = _row(endpoint)
        if row.ifindex in self._attached:
            self.datapath.update_endpoint(row)
        else:
            # Its device stays attached also after the endpoint, as nothing in an episode needs it otherwise.
            self.datapath.attach_endpoint(row)
            self._attached.add(row.ifindex)

    def _put_policy(self, subject: int, instance: int, policy: Policy) -> None:
        entries = [*_entries_of(instance, policy)]
        self.datapath.policy_put(entries)
        self.datapath.subject_put(subject, _subject(instance, policy, entries))
        self.datapath.policy_delete(self._instances.get(subject, []))
        self._instances[subject] = [key for key, _ in entries]

    def _expire(self, flow: Tuple5) -> None:
        for name, key, value in self._flows():
            if _tuple(CtEntry.unpack(key, value)) == flow:
                self._maps[name].put(key, struct.pack("=I", 1) + value[4:])

    # State

    def _flows(self) -> Iterator[tuple[str, bytes, bytes]]:
        for name in ("ct4", "ct6"):
            if name in self._maps:
                for key, value in self._maps[name].items():
                    yield name, key, value

    def flows(self) -> dict[Tuple5, KnownFlow]:
        """Every flow, by its tuple from the initiator."""
        now = time.monotonic()
        return {_tuple(entry): _known(entry, now) for entry in self._entries()}

    def _entries(self) -> Iterator[CtEntry]:
        for _, key, value in self._flows():
            yield CtEntry.unpack(key, value)

    def clear(self) -> None:
        """No endpoint, no policy, no ipcache, no flow."""
        for row in self.datapath.endpoints():
            self.datapath.detach_endpoint(row.ifindex, row.ipv4, row.ipv6)
        self._attached.clear()
        self.datapath.ipcache_delete(list(self.datapath.ipcache()))
        for subject in self.datapath.subjects():
            self.datapath.subject_delete(subject)
        self.datapath.policy_delete(list(self.datapath.policy_entries()))
        self._instances.clear()
        for name in ("ct4", "ct6", "frag4", "frag6"):
            if name in self._maps:
                self._maps[name].delete_many([key for key, _ in self._maps[name].items()])

    def close(self) -> None:
        """Closes what this opened; the datapath is whose it was."""
        for bpf_map in self._maps.values():
            bpf_map.close()


def text(address: bytes | None) -> str:
    """An address as the loader writes it, "" for none."""
    return "" if address is None else str(ip_address(address))


def _open_map(datapath: KernelDatapath, name: str) -> Map:
    fd = lib.bpf_obj_get(os.path.join(datapath.pins.maps, name).encode())
    assert fd >= 0, name
    return Map(name, fd)


def _row(endpoint: Endpoint) -> EndpointRow:
    return EndpointRow(
        ifindex=endpoint.ifindex, identity=endpoint.identity, subject=endpoint.subject,
        endpoint_id=endpoint.endpoint_id, pod_mac=endpoint.pod_mac.hex(":"),
        host_mac=endpoint.host_mac.hex(":"), ipv4=text(endpoint.ipv4), ipv6=text(endpoint.ipv6),
    )  # fmt: skip


def _entries_of(instance: int, policy: Policy) -> Iterator[tuple[PolicyKey, PolicyValue]]:
    for direction, rules in ((Direction.INGRESS, policy.ingress), (Direction.EGRESS, policy.egress)):
        for entry in rules.entries:
            key = PolicyKey(instance, entry.identity, direction, entry.protocol, entry.port, entry.prefix)
            yield key, PolicyValue(deny=entry.deny, rule_cookie=1)


def _subject(instance: int, policy: Policy, entries: list[tuple[PolicyKey, PolicyValue]]) -> SubjectRow:
    shapes = [
        direction_shape(entries, direction, enforced=rules.enforced, audit=rules.audit)
        for direction, rules in ((Direction.INGRESS, policy.ingress), (Direction.EGRESS, policy.egress))
    ]
    return SubjectRow(instance, policy.epoch, policy.epoch, *shapes)


def _tuple(entry: CtEntry) -> Tuple5:
    return Tuple5(
        ip_address(entry.source).packed, ip_address(entry.destination).packed, entry.protocol,
        entry.source_port, entry.destination_port,
    )  # fmt: skip


def _known(entry: CtEntry, now: float) -> KnownFlow:
    left = entry.expires - now
    lifetime = min(LIFETIMES, key=lambda name: abs(LIFETIMES[name] - left)) if left > 0 else "expired"
    sides = tuple((s.owner, s.identity) for s in (entry.egress, entry.ingress))
    return KnownFlow(
        lifetime, entry.packets, entry.bytes, entry.reply_seen, entry.closing, (sides[0], sides[1])
    )


@contextmanager
def open_node(variant: Variant, cache_dir: str) -> Iterator[KernelNode]:
    """A node of a variant with its namespace and pins, until the end of the block."""
    _sweep()
    pin_dir = f"{_PINS}/fuzz-{os.getpid()}-{next(_numbers)}"
    with new_namespace():
        devices = make_devices(variant)
        try:
            datapath = KernelDatapath.open(
                _config(variant, devices), pin_dir=pin_dir, source_dir=str(_REPOSITORY / "bpf"),
                cache_dir=cache_dir, devices=[(NIC, devices.nic)], flags=_FLAGS,
            )  # fmt: skip
            try:
                node = KernelNode(datapath, _trials(datapath, pin_dir, cache_dir), devices, variant)
                yield node
                node.close()
            finally:
                datapath.close()
        finally:
            remove_pins(pin_dir)


def _config(variant: Variant, devices: Devices) -> NodeConfig:
    return NodeConfig(
        "fuzz", NODE4, ROUTER4, ("10.244.1.0/24",), devices.host, devices.net, devices.vxlan, mtu=MTU,
        tcp_syn_seconds=LIFETIMES["syn"], tcp_established_seconds=LIFETIMES["established"],
        tcp_closing_seconds=LIFETIMES["closing"], any_seconds=LIFETIMES["any"], map_sizes=_MAP_SIZES,
        node_ipv6=NODE6, router_ipv6=ROUTER6, endpoint_routes=variant.endpoint_routes,
        host_routing=variant.host_routing,
    )  # fmt: skip


def _trials(datapath: KernelDatapath, pin_dir: str, cache_dir: str) -> Trials:
    (compiled,) = compile_sources(str(Path(__file__).parent / "bpf"), ["fuzz_enter.c"], cache_dir)
    loaded = load_object(compiled.path, map_dir=f"{pin_dir}/fuzz", config={})
    table = Map("fuzz_programs", loaded.maps["fuzz_programs"])
    fds = {name: datapath.program_fd(name) for name in PROGRAMS}
    for place, fd in enumerate(fds.values()):
        table.put(struct.pack("=I", place), struct.pack("=I", fd))
    return Trials(fds, loaded.programs["fuzz_enter"].fd, {name: place for place, name in enumerate(fds)})


def _sweep() -> None:
    """Removes the pins of processes that are no more."""
    for path in Path(_PINS).glob("fuzz-*-*"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            remove_pins(str(path))
