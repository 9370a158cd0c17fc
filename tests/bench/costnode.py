"""The node whose programs' cost is measured: devices, datapath, policy, ipcache. No packet is really sent."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from services.loader.bpf.datapath import KernelDatapath, NodeConfig, remove_pins
from services.loader.bpf.layout import (
    SPACE_AUDIT,
    SPACE_BY_ADDRESS,
    Direction,
    EndpointRow,
    IpcacheValue,
    PolicyKey,
    PolicyValue,
    SubjectRow,
    direction_shape,
)
from tests.kernel.bpf.conftest import add_node_devices
from tests.kernel.bpf.namespaces import Namespaces, run
from tests.kernel.bpf.node import Rule

TCP = 6
ID_WORLD = 2
CLIENT_ID, WEB_ID, REMOTE_ID = 1001, 1002, 1003
OTHER_NODE = "172.31.0.2"
# What the policies let through; what the client's does not, and what only the web server's does not.
OPEN_PORTS, WORLD_PORT = (8080, 8081), 443
CLOSED_PORT, CLOSED_BY_WEB_PORT = 7, 9
_CLIENT_SUBJECT, _WEB_SUBJECT = 1, 2
_GATEWAY = {4: "172.31.0.254", 6: "fd00:172:31::fe"}
_GATEWAY_MAC = "02:00:00:00:ee:01"
# Spaces of entries that a policy may have besides the normal tier's for identities.
TIERS = (1, 2)
ADDRESSES_TOO = (*TIERS, SPACE_BY_ADDRESS)
AUDIT_TOO = (*ADDRESSES_TOO, SPACE_AUDIT, SPACE_AUDIT | SPACE_BY_ADDRESS)
_NUMBER, _STRANGER_ID, _STRANGE_PORT = 0xFF0001, 4242, 8443


@dataclass(frozen=True)
class Addresses:
    """Who is where, in one family. ``remote`` and ``world`` are the first of as many as are wanted."""

    node: str
    router: str
    client: str
    web: str
    remote: str
    world: str

    def remotes(self, count: int) -> list[str]:
        """Pods of the other node."""
        return [str(ip_address(self.remote) + index) for index in range(count)]

    def worlds(self, count: int) -> list[str]:
        """Addresses outside the cluster."""
        return [str(ip_address(self.world) + index) for index in range(count)]


ADDRESSES = {
    4: Addresses("172.31.0.1", "10.244.1.1", "10.244.1.11", "10.244.1.10", "10.245.0.1", "198.18.0.1"),
    6: Addresses(
        "fd00:172:31::1", "fd00:244:1::1", "fd00:244:1::b", "fd00:244:1::a", "fd00:245::1", "2001:db8::1"
    ),
}


@dataclass
class CostNode:
    """The datapath with two endpoints and a device to the world, by ifindex."""

    datapath: KernelDatapath
    client: int
    web: int
    nic: int

    @property
    def vxlan(self) -> int:
        """The overlay's device."""
        return self.datapath.config.vxlan_ifindex

    def fill_ipcache(self, entries: int) -> None:
        """Makes the ipcache of either family hold so many remote pods, and nothing else."""
        self.datapath.ipcache_delete(list(self.datapath.ipcache()))
        for addresses in ADDRESSES.values():
            value = IpcacheValue(REMOTE_ID, OTHER_NODE)
            self.datapath.ipcache_put([(address, value) for address in addresses.remotes(entries)])

    def judge_by(self, spaces: Sequence[int]) -> None:
        """Gives both policies entries in these spaces, too, which change no verdict."""
        _policy(self.datapath, _CLIENT_SUBJECT, Direction.EGRESS, _EGRESS, spaces)
        _policy(self.datapath, _WEB_SUBJECT, Direction.INGRESS, _INGRESS, spaces)

    def forget_flows(self) -> None:
        """Empties the tables of flows and of translations."""
        self.datapath.conntrack_purge(
            [address for addresses in ADDRESSES.values() for address in (addresses.client, addresses.web)]
        )


@contextmanager
def cost_node(cache_dir: str) -> Iterator[CostNode]:
    """Makes the node in a namespace of its own, in which the calling thread is meanwhile."""
    pin_dir = f"/sys/fs/bpf/fimbria/bench-{os.getpid()}"
    with Namespaces() as namespaces, namespaces.make("cost").entered():
        _add_devices()
        index = {name: socket.if_nametoindex(name) for name in ("lxcclient", "lxcweb", "nic")}
        datapath = KernelDatapath.open(
            _config(),
            pin_dir=pin_dir,
            source_dir=str(Path(__file__).resolve().parents[2] / "bpf"),
            cache_dir=cache_dir,
            devices=[("nic", index["nic"])],
        )
        try:
            made = CostNode(datapath, index["lxcclient"], index["lxcweb"], index["nic"])
            _populate(made)
            yield made
        finally:
            datapath.close()
            remove_pins(pin_dir)


def _add_devices() -> None:
    for scope in ("all", "default"):
        run("sysctl", "-q", "-w", f"net.ipv6.conf.{scope}.disable_ipv6=0")
    for setting in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
        run("sysctl", "-q", "-w", f"net.{setting}=1")
    add_node_devices(ADDRESSES[4].router)
    run("ip", "address", "add", f"{ADDRESSES[6].router}/128", "dev", "fimbria_host", "nodad")
    for device in ("lxcclient", "lxcweb", "nic"):
        run("ip", "link", "add", device, "type", "veth", "peer", "name", f"p{device}")
        for end in (device, f"p{device}"):
            run("ip", "link", "set", end, "up")
    for family, length in ((4, 24), (6, 64)):
        run("ip", "address", "add", f"{ADDRESSES[family].node}/{length}", "dev", "nic", *_nodad(family))
        gateway = _GATEWAY[family]
        run("ip", "neigh", "add", gateway, "lladdr", _GATEWAY_MAC, "dev", "nic", "nud", "permanent")
        run("ip", f"-{family}", "route", "add", "default", "via", gateway)


def _nodad(family: int) -> list[str]:
    return ["nodad"] if family == 6 else []


def _config() -> NodeConfig:
    index = socket.if_nametoindex
    return NodeConfig(
        "cost",
        ADDRESSES[4].node,
        ADDRESSES[4].router,
        ("10.244.1.0/24", "fd00:244:1::/64"),
        index("fimbria_host"),
        index("fimbria_net"),
        index("fimbria_vxlan"),
        node_ipv6=ADDRESSES[6].node,
        router_ipv6=ADDRESSES[6].router,
        host_routing=True,
        masquerade=True,
    )


def _populate(node: CostNode) -> None:
    """Both endpoints under policies that allow what is measured as allowed, by identity and port."""
    rows = (
        EndpointRow(
            node.client, ADDRESSES[4].client, CLIENT_ID, _CLIENT_SUBJECT, 11,
            "02:00:00:00:01:01", "02:00:00:00:01:02", ipv6=ADDRESSES[6].client,
        ),
        EndpointRow(
            node.web, ADDRESSES[4].web, WEB_ID, _WEB_SUBJECT, 12,
            "02:00:00:00:02:01", "02:00:00:00:02:02", ipv6=ADDRESSES[6].web,
        ),
    )  # fmt: skip
    node.datapath.blocks_put([("10.0.0.0/8", _NUMBER), ("fd00::/8", _NUMBER)])
    node.judge_by(())
    for row in rows:
        node.datapath.attach_endpoint(row)


_EGRESS = (
    *(Rule(peer, TCP, port) for peer in (WEB_ID, REMOTE_ID) for port in (*OPEN_PORTS, CLOSED_BY_WEB_PORT)),
    Rule(ID_WORLD, TCP, WORLD_PORT),
)
_INGRESS = tuple(Rule(peer, TCP, port) for peer in (CLIENT_ID, REMOTE_ID) for port in OPEN_PORTS)


def _policy(
    datapath: KernelDatapath,
    subject: int,
    direction: Direction,
    rules: Sequence[Rule],
    spaces: Sequence[int] = (),
) -> None:
    """Enforces the rules in one direction and nothing in the other."""
    entries = [rule.entry(subject, direction) for rule in rules]
    for space in spaces:
        whose = _NUMBER if space & SPACE_BY_ADDRESS else _STRANGER_ID
        strange = PolicyKey(subject, whose, direction, TCP, _STRANGE_PORT, 16, space)
        entries.append((strange, PolicyValue(deny=True)))
        if space in TIERS:
            entries.append((PolicyKey(subject, 0, direction, 0, space=space), PolicyValue(passes=True)))
    datapath.policy_put(entries)
    audited = any(space & SPACE_AUDIT for space in spaces)
    shapes = {
        each: direction_shape(
            entries, each, enforced=each is direction, audit_enforced=audited and each is direction
        )
        for each in (Direction.INGRESS, Direction.EGRESS)
    }
    row = SubjectRow(subject, 1, 1, shapes[Direction.INGRESS], shapes[Direction.EGRESS])
    datapath.subject_put(subject, row)
