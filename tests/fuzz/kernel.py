"""The loader's datapath, given the same changes and packets as the model."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

from services.loader.bpf.datapath import KernelDatapath
from services.loader.bpf.events import Event
from services.loader.bpf.layout import (
    CtEntry,
    Direction,
    IpcacheValue,
    PolicyKey,
    pack_lpm_key,
)
from services.loader.bpf.maps import Map
from services.loader.bpf.nat import Kind, NatEntry
from services.loader.bpf.native import lib
from tests.fuzz import rows
from tests.fuzz.changes import (
    Backlog,
    Change,
    Collect,
    Exclude,
    Expire,
    Forget,
    Purge,
    PutBlock,
    PutEndpoint,
    PutFailsafe,
    PutHostPolicy,
    PutPeer,
    PutPolicy,
    RemoveBlock,
    RemoveEndpoint,
    RemovePeer,
    RemovePolicy,
    Watch,
)
from tests.fuzz.model.masquerade import Place, answer
from tests.fuzz.model.parsing import Tuple5
from tests.fuzz.model.steps import Input
from tests.fuzz.model.world import Endpoint, Policy
from tests.fuzz.observed import Count, Counters, Departures, Reports
from tests.fuzz.places import Devices
from tests.fuzz.trial import Outcome, Trials
from tests.fuzz.variants import Variant

_FLOWS, _TRANSLATIONS = ("ct4", "ct6"), ("nat4", "nat6")
_TABLES = (*_FLOWS, *_TRANSLATIONS, "frag4", "frag6")


@dataclass(frozen=True, slots=True)
class Ran:
    """A packet's run: the outcome, what was counted and reported, and the endpoint's departure times.

    ``forwarded`` is (kind, ifindex, VNI, remote), ``queue`` the device that the queue mapping stands for.
    ``departures`` are that endpoint's before and after, ``clock`` the time before and after, all in ns.
    """

    outcome: Outcome
    forwarded: tuple[int, int, int, bytes]
    queue: int
    reports: list[Event]
    departures: tuple[int, int]
    clock: tuple[int, int]


class KernelNode:
    """A datapath, loaded. Use it in the thread and namespace where it was made."""

    def __init__(self, datapath: KernelDatapath, trials: Trials, devices: Devices, variant: Variant) -> None:
        self.datapath = datapath
        self.devices = devices
        self.variant = variant
        self._trials = trials
        self._maps = {name: _open_map(datapath, name) for name in os.listdir(datapath.pins.maps)}
        self._counters = Counters(self._maps["metrics"])
        self._reports = Reports(datapath)
        self._departures = Departures(self._maps["edt_next"], self._maps["endpoint_dev"])
        self._instances: dict[int, list[PolicyKey]] = {}
        self._forward_map = self._maps["test_forward"]
        self._attached: set[int] = set()

    # Packets

    def run(self, given: Input) -> Ran:
        """The program's work on a packet."""
        self._forward_map.put(bytes(4), bytes(16))
        slot = self._departures.slot(given.queue)
        before = self._departures.next(given.queue) if slot else 0
        started = time.monotonic_ns()
        outcome = self._trials.run(given, slot)
        ended = time.monotonic_ns()
        after = self._departures.next(given.queue) if slot else 0
        reports = [event for event in self._reports.take() if started <= event.time_ns <= ended]
        noted = self._forward_map.get(bytes(4))
        assert noted is not None
        return Ran(
            outcome, struct.unpack("=III4s", noted), self._queue(outcome.queue), reports,
            (before, after), (started, ended),
        )  # fmt: skip

    def _queue(self, slot: int) -> int:
        """The device that a slot is of; a number that is none's is negative."""
        if not slot:
            return 0
        slots = {self._departures.slot(row.ifindex): row.ifindex for row in self.datapath.endpoints()}
        return slots.get(slot, -slot)

    def counted(self, likely: int = 0) -> list[Count]:
        """The drops that were counted since the last call; ``likely`` is a reason to look at first."""
        return self._counters.moved(likely)

    # Changes

    def apply(self, change: Change) -> None:
        """What the loader does."""
        datapath = self.datapath
        match change:
            case PutEndpoint(endpoint):
                self._put_endpoint(endpoint)
            case RemoveEndpoint(endpoint):
                datapath.detach_endpoint(endpoint.ifindex, *(rows.text(a) for a in endpoint.addresses()))
            case PutPolicy(subject, instance, policy):
                self._put_policy(subject, instance, policy)
            case RemovePolicy(subject):
                datapath.subject_delete(subject)
            case PutPeer(network, length, peer):
                value = IpcacheValue(peer.identity, rows.text(peer.tunnel))
                datapath.ipcache_put([(f"{rows.text(network)}/{length}", value)])
            case RemovePeer(network, length):
                datapath.ipcache_delete([f"{rows.text(network)}/{length}"])
            case PutBlock(network, length, number):
                self._blocks(network).put(pack_lpm_key(network, length), struct.pack("=I", number))
            case RemoveBlock(network, length):
                self._blocks(network).delete(pack_lpm_key(network, length))
            case Collect():
                datapath.conntrack_gc(time.monotonic())
            case Purge(address):
                datapath.conntrack_purge([rows.text(address)])
            case _:
                self._apply_to_node(change)

    def _apply_to_node(self, change: Change) -> None:
        match change:
            case PutHostPolicy(subject):
                mac, net_mac = (self.devices.macs[each].hex(":") for each in ("host", "net"))
                self.datapath.host_policy(subject, mac=mac, net_mac=net_mac)
            case PutFailsafe(ports):
                self.datapath.failsafe_put(
                    (Direction.INGRESS if port.ingress else Direction.EGRESS, port.protocol, port.port)
                    for port in ports
                )
            case Exclude(prefixes):
                self.datapath.masquerade_exclude(
                    f"{rows.text(network)}/{length}" for network, length in prefixes
                )
            case Watch(events, trace):
                self._reports.want(events=events, trace=trace)
            case Backlog(ifindex, seconds):
                self._departures.set(ifindex, max(time.monotonic_ns() + int(seconds * 1e9), 0))
            case Forget(flow, port, is_original):
                self._forget(flow, port, is_original=is_original)
            case Expire(flow):
                self._expire(flow)

    def _put_endpoint(self, endpoint: Endpoint) -> None:
        row = rows.row(endpoint)
        if row.ifindex in self._attached:
            self.datapath.update_endpoint(row)
        else:
            # Its device stays attached also after the endpoint, as nothing in an episode needs it otherwise.
            self.datapath.attach_endpoint(row)
            self._attached.add(row.ifindex)

    def _blocks(self, network: bytes) -> Map:
        return self._maps["block4" if len(network) == 4 else "block6"]

    def _put_policy(self, subject: int, instance: int, policy: Policy) -> None:
        entries = [*rows.entries_of(instance, policy)]
        self.datapath.policy_put(entries)
        self.datapath.subject_put(subject, rows.subject(instance, policy, entries))
        self.datapath.policy_delete(self._instances.get(subject, []))
        self._instances[subject] = [key for key, _ in entries]

    def _expire(self, flow: Tuple5) -> None:
        for name, key, value in self._elements(_FLOWS):
            if rows.flow_of(CtEntry.unpack(key, value)) == flow:
                self._maps[name].put(key, struct.pack("=I", 1) + value[4:])

    def _forget(self, flow: Tuple5, port: int, *, is_original: bool) -> None:
        for name, key, value in self._elements(_TRANSLATIONS):
            entry = NatEntry.unpack(key, value)
            if is_original:
                is_it = entry.kind == Kind.ORIGINAL and rows.original(entry) == flow
            else:
                is_it = entry.kind == Kind.REVERSE and rows.owned(entry) == (answer(flow, port), flow)
            if is_it:
                self._maps[name].delete(key)

    # State

    def _elements(self, names: tuple[str, ...]) -> Iterator[tuple[str, bytes, bytes]]:
        for name in names:
            # A node that does not masquerade has no tables for it.
            for key, value in self._maps[name].items() if name in self._maps else ():
                yield name, key, value

    def flows(self) -> dict[Tuple5, rows.KnownFlow]:
        """Every flow, by its tuple from the initiator."""
        now = time.monotonic()
        entries = (CtEntry.unpack(key, value) for _, key, value in self._elements(_FLOWS))
        return {rows.flow_of(entry): rows.known(entry, now) for entry in entries}

    def translations(self) -> tuple[dict[Tuple5, int], dict[Place, Tuple5]]:
        """Ports by flow, and flows by what their answers look like, as in the model."""
        entries = [NatEntry.unpack(key, value) for _, key, value in self._elements(_TRANSLATIONS)]
        originals = {rows.original(entry): entry.to_port for entry in entries if entry.kind == Kind.ORIGINAL}
        return originals, dict(rows.owned(entry) for entry in entries if entry.kind == Kind.REVERSE)

    def clear(self) -> None:
        """No endpoint, no policy, no ipcache, no flow, nobody who reads events."""
        datapath = self.datapath
        for row in datapath.endpoints():
            datapath.detach_endpoint(row.ifindex, row.ipv4, row.ipv6)
        self._attached.clear()
        datapath.ipcache_delete(list(datapath.ipcache()))
        for subject in datapath.subjects():
            datapath.subject_delete(subject)
        datapath.policy_delete(list(datapath.policy_entries()))
        self._instances.clear()
        self.apply(PutHostPolicy(0))
        self.apply(PutFailsafe(frozenset()))
        self.apply(Exclude(()))
        self._reports.want(events=False)
        self._reports.take()
        self._departures.clear()
        # So that flows get the same ports each time; a node that does not masquerade has no such map.
        if "nat_state" in self._maps:
            self._maps["nat_state"].put(bytes(4), struct.pack("=QII", 0x1234567890ABCDEF, 0, 0))
        for name in self._maps.keys() & {*_TABLES, "block4", "block6"}:
            self._maps[name].delete_many([key for key, _ in self._maps[name].items()])

    def close(self) -> None:
        """Closes what this opened; the datapath is whose it was."""
        self._reports.close()
        for bpf_map in self._maps.values():
            bpf_map.close()


def _open_map(datapath: KernelDatapath, name: str) -> Map:
    fd = lib.bpf_obj_get(os.path.join(datapath.pins.maps, name).encode())
    assert fd >= 0, name
    return Map(name, fd)
