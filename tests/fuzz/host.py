"""A network namespace without a name, with a node's devices and routes; it goes with whoever is in it."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from tests.fuzz.addresses import GATEWAY4, GATEWAY6, NODE4, NODE6, ROUTER4, ROUTER6
from tests.fuzz.model.parsing import TCP
from tests.fuzz.model.world import Socket
from tests.fuzz.places import Devices
from tests.fuzz.variants import Variant

MTU = 1500

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_ENDPOINT_DEVICES = 7
_TCP_REPAIR = 19
HOST, NET, VXLAN, NIC = "fimbria_host", "fimbria_net", "fimbria_vxlan", "nic"

# In the node's main table beside what the addresses bring: prefix, device, gateway.
_ROUTES = {
    4: (("0.0.0.0/0", NIC, GATEWAY4), ("10.244.1.0/24", HOST, ""), ("10.244.2.0/24", HOST, "")),
    6: (("::/0", NIC, GATEWAY6), ("fd00:10:244:1::/64", HOST, ""), ("fd00:10:244:2::/64", HOST, "")),
}
_NIC_ROUTES = {4: "172.31.0.0/24", 6: "fd00:31::/64"}
# What is not routed on: the node's own, loopback, broadcast, IPv6 multicast, the anycast address of routers.
_NOT_ROUTED = (
    f"{NODE4}/32", f"{ROUTER4}/32", "127.0.0.0/8", "172.31.0.255/32", f"{NODE6}/128", f"{ROUTER6}/128",
    "::1/128", "ff00::/8", "fe80::/10", "fd00:31::/128",
)  # fmt: skip


@contextmanager
def new_namespace() -> Iterator[None]:
    """The calling thread in a network namespace of its own."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare the network namespace")
        try:
            yield
        finally:
            if _libc.setns(before, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "return to the network namespace")
    finally:
        os.close(before)


def make_devices(variant: Variant) -> Devices:
    """The devices of a node, in the thread's namespace. None of them sends anything by itself."""
    for name, value in (("forwarding", 1), ("accept_ra", 0), ("autoconf", 0), ("dad_transmits", 0),
                        ("addr_gen_mode", 1), ("router_solicitations", 0),
                        # What groups they join is told at once, and again after up to so long.
                        ("mldv1_unsolicited_report_interval", 1 << 30),
                        ("mldv2_unsolicited_report_interval", 1 << 30)):  # fmt: skip
        for scope in ("all", "default"):
            _sysctl(f"ipv6/conf/{scope}/{name}", value)
    _sysctl("ipv4/ip_forward", 1)
    commands = [
        f"link add {HOST} type veth peer name {NET}",
        f"link add {NIC} type veth peer name wire",
        *(f"link add lxc{number} type veth peer name pod{number}" for number in range(_ENDPOINT_DEVICES)),
        *([f"link add {VXLAN} type vxlan external dstport 4789"] if variant.tunnel else []),
        *(f"link set {device} up" for device in ("lo", HOST, NET, NIC, "wire")),
        f"address add {NODE4}/24 dev {NIC}",
        f"address add {ROUTER4}/32 dev {HOST}",
    ]
    if 6 in variant.node_families:
        commands += [f"address add {NODE6}/64 dev {NIC} nodad", f"address add {ROUTER6}/128 dev {HOST} nodad"]
    commands += [
        f"route add {prefix} dev {device}" + (f" via {gateway}" if gateway else "")
        for family in variant.node_families
        for prefix, device, gateway in _ROUTES[family]
    ]
    batch = subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), capture_output=True, text=True)
    if batch.returncode:
        raise AssertionError(f"ip -batch: {batch.stderr.strip()}")
    index = socket.if_nametoindex
    return Devices(
        host=index(HOST), net=index(NET), vxlan=index(VXLAN) if variant.tunnel else 0, nic=index(NIC),
        endpoints=tuple(index(f"lxc{number}") for number in range(_ENDPOINT_DEVICES)),
        macs={"host": _mac(HOST), "net": _mac(NET)},
    )  # fmt: skip


def _mac(device: str) -> bytes:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((device, 0))
        return bytes(raw.getsockname()[4])


@contextmanager
def open_sockets(wanted: tuple[Socket, ...]) -> Iterator[None]:
    """The node's own sockets, until the end of the block."""
    with ExitStack() as stack:
        for one in wanted:
            family = socket.AF_INET if len(one.address) == 4 else socket.AF_INET6
            kind = socket.SOCK_STREAM if one.protocol == TCP else socket.SOCK_DGRAM
            opened = stack.enter_context(socket.socket(family, kind))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if one.protocol == TCP and one.peer is not None:
                # In repair it is connected without a packet, and closed without one.
                opened.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
            opened.bind((str(ip_address(one.address)), one.port))
            if one.peer is not None:
                opened.connect((str(ip_address(one.peer[0])), one.peer[1]))
            elif one.protocol == TCP:
                opened.listen()
        yield


def _sysctl(path: str, value: int) -> None:
    with open(f"/proc/sys/net/{path}", "w", encoding="ascii") as file:
        file.write(str(value))


@dataclass(frozen=True, slots=True)
class _Route:
    network: int
    shift: int
    bits: int
    ifindex: int


class Routes:
    """The node's routing table, for the model: which device leads to an address."""

    def __init__(self, devices: Devices, families: tuple[int, ...]) -> None:
        places = {HOST: devices.host, NIC: devices.nic}
        table = [(prefix, 0) for prefix in _NOT_ROUTED]
        for family in families:
            table += [(prefix, places[device]) for prefix, device, _ in _ROUTES[family]]
            table.append((_NIC_ROUTES[family], devices.nic))
        self._routes: list[_Route] = []
        for prefix, ifindex in table:
            network = ip_network(prefix)
            shift = network.max_prefixlen - network.prefixlen
            value = int(network.network_address) >> shift
            self._routes.append(_Route(value, shift, network.max_prefixlen, ifindex))
        self._routes.sort(key=lambda route: route.shift)

    def __call__(self, address: bytes) -> int:
        """The ifindex of the device, 0 for an address that is not routed on."""
        value, bits = int.from_bytes(address, "big"), len(address) * 8
        for route in self._routes:
            if route.bits == bits and value >> route.shift == route.network:
                return route.ifindex
        return 0
