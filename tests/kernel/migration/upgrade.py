"""A node that is opened again and again: with other sources, other sizes, in a process that dies."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from services.loader.bpf.attach import Ownership, attachments
from services.loader.bpf.datapath import KernelDatapath
from services.loader.bpf.map_dump import dump
from services.loader.bpf.maps import Chunk, Map, open_pinned
from services.loader.bpf.pins import PinDirectory
from services.loader.bpf.switching import close_programs, open_programs
from tests.kernel.bpf.cluster import ClusterNode, Pod
from tests.kernel.bpf.conftest import SOURCES
from tests.kernel.bpf.node import Node, Rule

REPOSITORY = Path(__file__).resolve().parents[3]
# So many entries, and room for them and for what traffic adds.
ROOM = 131072
TCP, UDP = 6, 17


def allow_one_way(node: Node, web: Pod, client: Pod) -> None:
    """What the client begins passes, and nothing that the other begins: without its entry a flow is dead."""
    allowed = [Rule(client.row.identity, protocol, 8080) for protocol in (TCP, UDP)]
    node.policy(web.row.subject, ingress=allowed, egress=[])
    node.policy(client.row.subject, ingress=[])


@dataclass
class Upgrade:
    """``node`` with its pods, and how to open it anew."""

    node: ClusterNode
    web: Pod
    client: Pod
    pin_dir: str
    cache_dir: str
    other_sources: str
    state_dir: str
    opened: list[KernelDatapath] = field(default_factory=list)
    # For those who open it by themselves.
    sources_now: str = SOURCES

    @property
    def pins(self) -> PinDirectory:
        return PinDirectory(self.pin_dir)

    @property
    def sizes(self) -> dict[str, int]:
        return {"ct4": ROOM}

    def open(
        self, *, other: bool = False, sizes: Mapping[str, int] | None = None, state: bool = True
    ) -> KernelDatapath:
        """Opens the node in this process."""
        config = self.node.datapath.config
        with self.node.namespace.entered():
            made = KernelDatapath.open(
                replace(config, map_sizes=self.sizes if sizes is None else sizes),
                pin_dir=self.pin_dir,
                source_dir=self.other_sources if other else SOURCES,
                cache_dir=self.cache_dir,
                state_dir=self.state_dir if state else "",
            )
        self.opened.append(made)
        return made

    def open_in_child(self, failpoint: str, *, other: bool = True) -> int:
        """Opens it in a process of its own that stops at a failpoint; returns how that ended."""
        config = replace(self.node.datapath.config, map_sizes=self.sizes)
        told = {name: getattr(config, name) for name in config.__dataclass_fields__}
        program = (
            "import json, sys\n"
            "from services.loader.bpf.datapath import KernelDatapath, NodeConfig\n"
            "config, arguments = json.load(sys.stdin)\n"
            "for name in ('pod_cidrs', 'masquerade_ports'):\n"
            "    config[name] = tuple(config[name])\n"
            "KernelDatapath.open(NodeConfig(**config), **arguments)\n"
        )
        arguments = {
            "pin_dir": self.pin_dir,
            "source_dir": self.other_sources if other else SOURCES,
            "cache_dir": self.cache_dir,
            "state_dir": self.state_dir,
        }
        done = subprocess.run(
            ["nsenter", f"--net={self.node.namespace.path}", sys.executable, "-c", program],
            input=json.dumps([told, arguments]),
            env={**os.environ, "FIMBRIA_FAILPOINT": failpoint},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode <= 0, done.stderr
        return done.returncode

    def close(self) -> None:
        for each in self.opened:
            each.close()

    # -- what is in the kernel

    def pinned(self, name: str) -> Map:
        found = open_pinned(self.pins.map_path(name), name)
        assert found is not None
        return found

    def content(self, name: str) -> dict[str, dict[str, Any]]:
        """What a pinned map holds, by key, members by name."""
        found = self.pinned(name)
        try:
            return {row.key.hex(): json.loads(row.value_json) for row in dump(name, found.id, 0)}
        finally:
            found.close()

    def is_other(self) -> bool:
        """Whether the maps in force are those of the other sources."""
        found = self.pinned("ct4")
        try:
            assert found.definition.value_size in (112, 120)
            return found.definition.value_size == 120
        finally:
            found.close()

    def running(self) -> set[int]:
        """The kernel's ids of all our programs on all devices."""
        devices = [self.web.row.ifindex, self.client.row.ifindex]
        config = self.node.datapath.config
        devices += [config.host_ifindex, config.vxlan_ifindex]
        with self.node.namespace.entered():
            found = attachments(devices, Ownership.of_pins(self.pins))
        assert all(found[device] for device in devices), found
        return {each.program for here in found.values() for each in here}

    def pinned_programs(self) -> set[int]:
        programs = open_programs(self.pins.programs)
        close_programs(programs)
        return {each.id for each in programs.values()}

    def is_whole(self) -> bool:
        """Whether nothing half-made is left, and every device runs the programs in force."""
        stages = {"pending", "next"} & set(os.listdir(self.pin_dir))
        return not stages and self.running() <= self.pinned_programs()


def fill_conntrack(table: Map, count: int, seed: int = 7) -> None:
    """That many flows of nobody's, of all kinds, which live for long."""
    source = random.Random(seed)
    keys = bytearray()
    values = bytearray()
    for number in range(count):
        # Two addresses, two ports, protocol, and zeros.
        keys += struct.pack("=IIHHBxxx", 0x0100000A + (number << 8), 0x0101A8C0, number & 0xFFFF, 80, TCP)
        values += struct.pack("=II", 0xFFFFFF00, number) + bytes((1, 3, 1, 0)) + bytes(4)
        values += source.randbytes(table.definition.value_size - 16)
    table.put_chunk(Chunk(keys, values, table.definition.key_size, table.definition.value_size))
