"""What must hold on a node whenever nothing is under way, seen from outside of the loader.

Every function returns what is wrong, in words; an empty list when nothing is.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from fimbria.loader.v1 import loader_pb2, loader_pb2_grpc

from services.loader.bpf.layout import EndpointRow, PolicyKey, SubjectRow, address_text
from services.loader.bpf.maps import Map
from services.loader.bpf.native import check, lib
from tests.kernel.loader.rig import Node, Rig

_READY = loader_pb2.ENDPOINT_STATE_READY
_HOST_SLOT = 1
# Smaller ones are reserved: the node's own, the world's.
_FIRST_IDENTITY = 256


@dataclass
class Expected:
    """What runtimes know: containers that are there, and those that may or may not be."""

    there: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)


def quick_problems(rig: Rig, node: Node, expected: Expected) -> list[str]:
    """What a glance shows: endpoints against devices, rows and what runtimes know; pins half made."""
    endpoints = node.endpoints()
    problems = [
        f"endpoint {each.id} of {each.pod_name} is {loader_pb2.EndpointState.Name(each.state)}: "
        f"{each.last_error}"
        for each in endpoints
        if each.state != _READY
    ]
    problems += _differ("devices", node.links(), "endpoints", {each.host_device for each in endpoints})
    containers = {each.container_id for each in endpoints}
    elsewhere = {each.container_id for other in rig.nodes if other is not node for each in other.endpoints()}
    there = expected.there - elsewhere
    problems += [f"{each} was added and has no endpoint" for each in sorted(there - containers)]
    surplus = containers - there - expected.unknown
    problems += [f"{each} was deleted and has an endpoint" for each in sorted(surplus)]
    pins = rig.pins(node)
    problems += [f"{pins / name} is left" for name in ("pending", "next") if (pins / name).exists()]
    return problems


def every_problem(rig: Rig, node: Node, expected: Expected) -> list[str]:
    """All that can be seen: beside the above the kernel's maps and programs by their pins, the services'
    lists, the state directory, and what the loader itself takes for orphans.
    """
    problems = quick_problems(rig, node, expected)
    if problems:
        return problems
    endpoints = node.endpoints()
    problems += _maps(rig.pins(node) / "maps", endpoints)
    problems += _programs(rig.pins(node) / "progs", node, endpoints)
    problems += service_problems(rig)
    problems += _state(node, endpoints)
    problems += _orphans(node)
    return problems


def _maps(directory: Path, endpoints: Collection[loader_pb2.Endpoint]) -> list[str]:
    problems = []
    with pinned_maps(directory) as open_map:
        devices = {_int(key): _int(value) for key, value in open_map("endpoint_dev").items()}
        problems += _differ("endpoint_dev", devices, "endpoints", {each.ifindex for each in endpoints})
        rows = {}
        for ifindex, slot in devices.items():
            data = open_map("endpoint_slot").get(slot.to_bytes(4, "little"))
            rows[ifindex] = EndpointRow.unpack(data or b"")
        for each in endpoints:
            row = rows.get(each.ifindex)
            told = (each.ifindex, each.id, each.identity, each.subject, each.ipv4, each.ipv6)
            held = row and (row.ifindex, row.endpoint_id, row.identity, row.subject, row.ipv4, row.ipv6)
            if held != told:
                problems.append(f"endpoint {each.id} is {told} and its row says {held}")
        for name, wanted in (
            ("endpoint_ip4", {each.ipv4: devices.get(each.ifindex) for each in endpoints if each.ipv4}),
            ("endpoint_ip6", {each.ipv6: devices.get(each.ifindex) for each in endpoints if each.ipv6}),
        ):
            held_slots = {address_text(key): _int(value) for key, value in open_map(name).items()}
            problems += _differ(name, held_slots.items(), "endpoints", wanted.items())
        index = {
            number: _int(value)
            for number, (_, value) in enumerate(open_map("endpoint_index").items())
            if _int(value)
        }
        small = {number: slot for number, slot in devices.items() if number < open_map.size("endpoint_index")}
        problems += _differ("endpoint_index", index.items(), "endpoint_dev", small.items())
        subjects = {
            _int(key): SubjectRow.unpack(value).instance for key, value in open_map("subject").items()
        }
        host = EndpointRow.unpack(open_map("endpoint_slot").get(_HOST_SLOT.to_bytes(4, "little")) or b"")
        used = {each.subject for each in endpoints} | ({host.subject} if host.subject else set())
        stray = subjects.keys() - used
        if len(stray) > (0 if host.subject else 1):
            # One may be the node's own, which its row names only while a policy selects the node.
            problems.append(f"the rows of subjects {sorted(stray)} belong to no endpoint")
        problems += [f"subject {each} has no row" for each in sorted(used - subjects.keys())]
        instances = {PolicyKey.unpack(key).instance for key, _ in open_map("policy").items()}
        lost = instances - set(subjects.values())
        problems += [f"policy entries of instance {each} belong to no subject" for each in sorted(lost)]
    return problems


def _programs(directory: Path, node: Node, endpoints: Collection[loader_pb2.Endpoint]) -> list[str]:
    """Every endpoint device has the two pinned programs, each once."""
    pinned = {path.name: _bpftool("prog", "show", "pinned", str(path))["id"] for path in directory.iterdir()}
    wanted = sorted(pinned[name] for name in ("from_container", "to_container"))
    attached: dict[str, list[int]] = {}
    found = json.loads(node.namespace.command("bpftool", "-j", "net", "show"))[0]
    for each in [*found["tc"], *found["xdp"]]:
        number = each.get("id") or each.get("prog_id")
        attached.setdefault(each["devname"], []).append(number)
    problems = [
        f"{each.host_device} has programs {sorted(attached.get(each.host_device, []))}; "
        f"expected those of the pins, {wanted}"
        for each in endpoints
        if sorted(attached.get(each.host_device, [])) != wanted
    ]
    for device, numbers in attached.items():
        if strange := set(numbers) - set(pinned.values()):
            problems.append(f"{device} has programs {sorted(strange)}, which are not pinned")
        if len(numbers) != len(set(numbers)):
            problems.append(f"{device} has a program twice: {sorted(numbers)}")
    return problems


def service_problems(rig: Rig) -> list[str]:
    """What the services hold against what the nodes have: owners, addresses, identities."""
    endpoints = [each for node in rig.nodes for each in node.endpoints()]
    problems = _differ(
        "ipam", rig.owners(), "endpoints", {f"{each.container_id}/{each.ifname}" for each in endpoints}
    )
    addresses = [address for each in endpoints for address in (each.ipv4, each.ipv6) if address]
    problems += [f"{each} has two owners" for each in set(addresses) if addresses.count(each) > 1]
    published = {
        (prefix.partition("/")[0], entry.identity)
        for prefix, entry in rig.published().items()
        if prefix.endswith(("/32", "/128")) and entry.node
    }
    told = {(address, each.identity) for each in endpoints for address in (each.ipv4, each.ipv6) if address}
    problems += _differ("the cluster's ipcache", published, "endpoints", told)
    for node in rig.nodes:
        held = {prefix.partition("/")[0]: entry.identity for prefix, entry in node.ipcache().items()}
        problems += [
            f"{node.name} has {address} with identity {held.get(address)}, not {identity}"
            for address, identity in told
            if held.get(address) != identity
        ]
        pods = {(address, identity) for address, identity in held.items() if identity >= _FIRST_IDENTITY}
        problems += [f"{node.name} has {each}, which is nobody's" for each in sorted(pods - told)]
    return problems


def _state(node: Node, endpoints: Collection[loader_pb2.Endpoint]) -> list[str]:
    """Nothing half written and nothing still to do is left on disk."""
    problems = []
    state = node.directory / "state"
    for path in state.rglob("*"):
        if path.suffix in (".tmp", ".damaged") or ".tmp" in path.name:
            problems.append(f"{path} is left")
    records = {int(path.stem) for path in (state / "endpoints").glob("*.json")}
    problems += _differ("records", records, "endpoints", {each.id for each in endpoints})
    for directory in (state / "releases", node.directory / "deletes"):
        if directory.exists():
            problems += [f"{path} still waits" for path in directory.iterdir()]
    return problems


def _orphans(node: Node) -> list[str]:
    with grpc.insecure_channel(node.target) as channel:
        stub = loader_pb2_grpc.DatapathServiceStub(channel)
        found = stub.CollectOrphans(loader_pb2.CollectOrphansRequest(dry_run=True), timeout=10)
    problems = [f"orphan: {each.kind} {each.name} {each.detail}" for each in found.orphans]
    return problems + ([f"not all orphans were looked for: {found.skipped}"] if found.skipped else [])


class PinnedMaps:
    """Maps opened by their pins, closed together."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: dict[str, Map] = {}

    def __call__(self, name: str) -> Map:
        if name not in self._open:
            fd = check(lib.bpf_obj_get(os.fsencode(self._directory / name)), f"open {name}")
            self._open[name] = Map(name, fd)
        return self._open[name]

    def size(self, name: str) -> int:
        """Most entries."""
        return self(name).definition.max_entries

    def close(self) -> None:
        for each in self._open.values():
            each.close()


@contextmanager
def pinned_maps(directory: Path) -> Iterator[PinnedMaps]:
    """Maps by name, while the block lasts."""
    made = PinnedMaps(directory)
    try:
        yield made
    finally:
        made.close()


def _bpftool(*arguments: str) -> Any:
    done = subprocess.run(["bpftool", "-j", *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def _differ(left: str, has: Collection[Any], right: str, wants: Collection[Any]) -> list[str]:
    has, wants = set(has), set(wants)
    problems = [f"{left} has {each}, {right} not" for each in sorted(has - wants, key=str)]
    return problems + [f"{right} has {each}, {left} not" for each in sorted(wants - has, key=str)]


def _int(data: bytes) -> int:
    return int.from_bytes(data, "little")
