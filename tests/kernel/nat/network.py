"""Pods behind a node that masquerades, a router, and a world that has no route to pods; both families."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import subprocess
from dataclasses import dataclass

from services.loader.bpf.attach import Hook, attach_filters
from tests.kernel.bpf.namespaces import Namespace, Namespaces, run
from tests.kernel.nat.frames import V4, V6, Family
from tests.kernel.nat.translator import Translator
from tests.patience import patient

PATIENCE = patient(10.0)
PODS = {"pod": (V4.pod, V6.pod), "other": (V4.other_pod, V6.other_pod)}
ROUTER = {False: "192.0.2.254", True: "2001:db8:1::fe"}

_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17


@dataclass(frozen=True)
class Network:
    """pod and other ── node ── router ── world."""

    pod: Namespace
    other: Namespace
    node: Namespace
    router: Namespace
    world: Namespace

    def finish_checksums(self) -> None:
        """No device of the node leaves checksums to the next one: whoever receives verifies them."""
        with self.node.entered():
            for device in ("eth0", "lxcpod", "lxcother"):
                _set_checksum_offload(device, False)


def build_network(namespaces: Namespaces, nat: Translator) -> Network:
    made = Network(*(namespaces.make(f"nat{name}") for name in ("pod", "other", "node", "router", "world")))
    for each in (made.pod, made.other, made.node, made.router, made.world):
        for scope in ("all", "default"):
            each.command(
                "sysctl", "-q", "-w", f"net.ipv6.conf.{scope}.disable_ipv6=0",
                f"net.ipv6.conf.{scope}.accept_dad=0", f"net.ipv4.conf.{scope}.rp_filter=0",
            )  # fmt: skip
        each.command("sysctl", "-q", "-w", "net.ipv4.tcp_congestion_control=reno")
    for each in (made.node, made.router):
        each.command("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        # As many errors as tests ask for.
        each.command(
            "sysctl", "-q", "-w", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0",
            "net.ipv4.icmp_msgs_per_sec=100000",
        )  # fmt: skip
    _link(made.node, "eth0", made.router, "eth0")
    _link(made.router, "eth1", made.world, "eth0")
    _addresses(made.node, "eth0", f"{V4.node}/24", f"{V6.node}/64")
    _addresses(made.router, "eth0", f"{ROUTER[False]}/24", f"{ROUTER[True]}/64")
    _addresses(made.router, "eth1", "198.51.100.1/24", "2001:db8:2::1/64")
    _addresses(made.world, "eth0", f"{V4.peer}/24", f"{V6.peer}/64")
    _default(made.node, ROUTER[False], ROUTER[True])
    _default(made.world, "198.51.100.1", "2001:db8:2::1")
    for name, (ipv4, ipv6) in PODS.items():
        pod = made.pod if name == "pod" else made.other
        device = f"lxc{name}"
        _link(made.node, device, pod, "eth0")
        _addresses(made.node, device, "10.66.0.1/32", "fd66::1/128")
        _addresses(pod, "eth0", f"{ipv4}/32", f"{ipv6}/128")
        for address in (ipv4, ipv6):
            made.node.command("ip", "route", "add", address, "dev", device)
        for gateway in ("10.66.0.1", "fd66::1"):
            pod.command("ip", "route", "add", gateway, "dev", "eth0", "scope", "link")
        _default(pod, "10.66.0.1", "fd66::1")
    with made.node.entered():
        attach_filters(
            socket.if_nametoindex("eth0"),
            {Hook.EGRESS: nat.programs["nat_out"].fd, Hook.INGRESS: nat.programs["nat_in"].fd},
        )
    return made


def _link(one: Namespace, device: str, other: Namespace, peer: str) -> None:
    one.command("ip", "link", "add", device, "type", "veth", "peer", "name", peer, "netns", other.name)
    one.command("ip", "link", "set", device, "up")
    other.command("ip", "link", "set", peer, "up")


def _addresses(namespace: Namespace, device: str, ipv4: str, ipv6: str) -> None:
    namespace.command("ip", "address", "add", ipv4, "dev", device)
    namespace.command("ip", "address", "add", ipv6, "dev", device, "nodad")


def _default(namespace: Namespace, ipv4: str, ipv6: str) -> None:
    namespace.command("ip", "route", "add", "default", "via", ipv4)
    namespace.command("ip", "-6", "route", "add", "default", "via", ipv6)


def _set_checksum_offload(device: str, on: bool) -> None:
    value = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, on))
    request = struct.pack("16sP", device.encode(), ctypes.addressof(value))
    with socket.socket() as control:
        fcntl.ioctl(control, _SIOCETHTOOL, request)


def open_socket(
    namespace: Namespace, family: Family, kind: socket.SocketKind = socket.SOCK_STREAM
) -> socket.socket:
    """A socket that belongs to the namespace for good."""
    with namespace.entered():
        made = socket.socket(socket.AF_INET6 if family.v6 else socket.AF_INET, kind)
    made.settimeout(PATIENCE)
    return made


def ping(namespace: Namespace, address: str, *arguments: str) -> str:
    """What one ping says, answered or not."""
    command = ["nsenter", f"--net={namespace.path}", "ping", "-n", "-c", "1", "-W", "2", *arguments, address]
    return subprocess.run(command, capture_output=True, text=True).stdout


def path_mtu(namespace: Namespace, address: str) -> int | None:
    """The MTU that the namespace's stack has learnt for an address."""
    with namespace.entered():
        words = run("ip", "route", "get", address).split()
    return int(words[words.index("mtu") + 1]) if "mtu" in words else None
