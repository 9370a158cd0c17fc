"""Two nodes with real devices, an underlay between them, and pods that are network namespaces."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from services.loader.bpf.datapath import KernelDatapath
from services.loader.bpf.layout import EndpointRow, IpcacheValue, SubjectRow
from tests.kernel.bpf.conftest import SOURCES, add_node_devices, node_config
from tests.kernel.bpf.namespaces import Namespace, Namespaces, run
from tests.kernel.bpf.node import Node
from tests.patience import patient

PATIENCE = patient(10.0)
# Long enough for a packet that is let through, short enough to wait for one that is not.
SILENCE = patient(0.5)


@dataclass
class Pod:
    """A pod: its namespace, its address, and its row on its node."""

    namespace: Namespace
    node: ClusterNode
    row: EndpointRow

    @property
    def address(self) -> str:
        return self.row.ipv4

    def socket(
        self, kind: socket.SocketKind, protocol: int = 0, *, family: int = socket.AF_INET
    ) -> socket.socket:
        return open_socket(self.namespace, kind, protocol, family=family)


@dataclass
class ClusterNode:
    """A node: its namespace and datapath; ``node`` is the tests' handle on its policy and counters."""

    name: str
    namespace: Namespace
    address: str
    router: str
    datapath: KernelDatapath
    node: Node = field(init=False)
    pods: list[Pod] = field(default_factory=list)


class Cluster:
    """Makes nodes and pods; everything knows everybody's identity at once."""

    def __init__(self, namespaces: Namespaces, pin_dir: str, cache_dir: str, stack: ExitStack) -> None:
        self._namespaces = namespaces
        self.nodes = [self._add_node(number, pin_dir, cache_dir, stack) for number in (1, 2)]
        first, second = (each.namespace for each in self.nodes)
        first.command(
            "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", second.name
        )
        for each in self.nodes:
            each.namespace.command("ip", "address", "add", f"{each.address}/24", "dev", "eth0")
            each.namespace.command("ip", "link", "set", "eth0", "up")
            for other in self.nodes:
                if other is not each:
                    each.datapath.ipcache_put(
                        [
                            (other.address, IpcacheValue(6)),
                            (other.router, IpcacheValue(6, other.address)),
                        ]
                    )

    def _add_node(self, number: int, pin_dir: str, cache_dir: str, stack: ExitStack) -> ClusterNode:
        namespace = self._namespaces.make(f"n{number}")
        address, router = f"172.31.0.{number}", f"10.244.{number}.1"
        with namespace.entered():
            add_node_devices(router)
            run("ip", "route", "add", "10.244.0.0/16", "dev", "fimbria_host", "src", router)
            for setting in ("ip_forward=1", "conf.all.rp_filter=0", "conf.default.rp_filter=0"):
                run("sysctl", "-q", "-w", f"net.ipv4.{setting}")
            config = node_config(f"node-{number}", address, router, f"10.244.{number}.0/24")
            datapath = KernelDatapath.open(
                config, pin_dir=f"{pin_dir}/node-{number}", source_dir=SOURCES, cache_dir=cache_dir
            )
        stack.callback(datapath.close)
        return ClusterNode(f"node-{number}", namespace, address, router, datapath)

    def add_pod(self, node: ClusterNode, name: str, identity: int) -> Pod:
        """A pod under a subject of its own, without policy."""
        number = len(node.pods) + 1
        address = f"{node.router.rsplit('.', 1)[0]}.{9 + number}"
        namespace = self._namespaces.make(name)
        with node.namespace.entered():
            run(
                "ip", "link", "add", f"lxc{name}", "mtu", "1450", "type", "veth",
                "peer", "name", "eth0", "mtu", "1450", "netns", namespace.name,
            )  # fmt: skip
            run("ip", "link", "set", f"lxc{name}", "up")
            ifindex, host_mac = socket.if_nametoindex(f"lxc{name}"), mac_of(f"lxc{name}")
        with namespace.entered():
            run("ip", "address", "add", f"{address}/32", "dev", "eth0")
            run("ip", "link", "set", "eth0", "up")
            run("ip", "route", "add", f"{node.router}/32", "dev", "eth0", "scope", "link")
            run("ip", "route", "add", "default", "via", node.router)
            run("sysctl", "-q", "-w", "net.ipv4.tcp_congestion_control=reno")
            pod_mac = mac_of("eth0")
        row = EndpointRow(ifindex, address, identity, number, number, pod_mac, host_mac)
        node.datapath.subject_put(number, SubjectRow(0, 0, 0))
        with node.namespace.entered():
            node.datapath.attach_endpoint(row)
        pod = Pod(namespace, node, row)
        node.pods.append(pod)
        node.node = Node(node.datapath, row, row, node.datapath.config.host_ifindex)
        for each in self.nodes:
            tunnel = "" if each is node else node.address
            each.datapath.ipcache_put([(address, IpcacheValue(identity, tunnel))])
        return pod

    def give_ipv6(self, pod: Pod) -> str:
        """Gives a pod an IPv6 address too, and returns it. From then on its stack asks for neighbours."""
        row = pod.row = replace(pod.row, ipv6=f"fd00:244:{pod.node.name[-1]}::{pod.address.split('.')[-1]}")
        with pod.namespace.entered():
            run("sysctl", "-q", "-w", "net.ipv6.conf.eth0.disable_ipv6=0")
            run("ip", "address", "add", f"{row.ipv6}/128", "dev", "eth0", "nodad")
            run("ip", "-6", "route", "add", "default", "via", "fd00::1", "dev", "eth0", "onlink")
        with pod.node.namespace.entered():
            pod.node.datapath.attach_endpoint(row)
        for each in self.nodes:
            tunnel = "" if each is pod.node else pod.node.address
            each.datapath.ipcache_put([(row.ipv6, IpcacheValue(row.identity, tunnel))])
        return row.ipv6


def mac_of(device: str) -> str:
    return run("ip", "-o", "link", "show", "dev", device).split("link/ether ")[1].split()[0]


def open_socket(
    namespace: Namespace, kind: socket.SocketKind, protocol: int = 0, *, family: int = socket.AF_INET
) -> socket.socket:
    """A socket that belongs to the namespace for good."""
    with namespace.entered():
        made = socket.socket(family, kind, protocol)
    made.settimeout(PATIENCE)
    return made


@contextmanager
def listening(pod: Pod, port: int, *, family: int = socket.AF_INET) -> Iterator[socket.socket]:
    with pod.socket(socket.SOCK_STREAM, family=family) as server:
        server.bind((pod.address if family == socket.AF_INET else pod.row.ipv6, port))
        server.listen()
        yield server


def connects(source: Namespace, server: socket.socket) -> bool:
    """Whether a connection comes about and carries a byte each way."""
    with open_socket(source, socket.SOCK_STREAM, family=server.family) as client:
        client.settimeout(SILENCE)
        try:
            client.connect(server.getsockname())
        except TimeoutError:
            return False
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"?")
            assert accepted.recv(1) == b"?"
            accepted.sendall(b"!")
            client.settimeout(PATIENCE)
            assert client.recv(1) == b"!"
    return True


def pings(source: Namespace, address: str, *arguments: str) -> bool:
    """Whether one ping is answered."""
    command = ["nsenter", f"--net={source.path}", "ping", "-c", "1", "-W", "1", *arguments, address]
    return subprocess.run(command, capture_output=True).returncode == 0
