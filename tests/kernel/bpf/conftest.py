"""Nodes for kernel tests: each with namespaces and a pin directory of its own."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.loader.bpf.datapath import KernelDatapath, NodeConfig, remove_pins
from services.loader.bpf.layout import EndpointRow
from tests.kernel.bpf.namespaces import Namespace, Namespaces, run
from tests.kernel.bpf.node import (
    CLIENT,
    CLIENT6,
    CLIENT_ID,
    CLIENT_SUBJECT,
    NODE,
    NODE6,
    POD_CIDR6,
    ROUTER,
    ROUTER6,
    SMALL_MAPS,
    WEB,
    WEB6,
    WEB_ID,
    WEB_SUBJECT,
    Node,
    populate,
)

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = str(REPOSITORY / "bpf")
BPFFS = "/sys/fs/bpf"

_numbers = itertools.count()


@pytest.fixture(autouse=True, scope="session")
def without_remnants() -> None:
    """Removes the pins of test processes that were killed."""
    for path in Path(BPFFS, "fimbria").glob("test-*-*"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            remove_pins(str(path))


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where compiled objects are kept; a machine that compiles slowly is given some."""
    return os.environ.get("FIMBRIA_TEST_OBJECTS") or str(tmp_path_factory.mktemp("objects"))


@pytest.fixture
def pin_dir() -> Iterator[str]:
    path = f"{BPFFS}/fimbria/test-{os.getpid()}-{next(_numbers)}"
    yield path
    remove_pins(path)


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    with Namespaces() as made:
        yield made


@pytest.fixture
def node_namespace(namespaces: Namespaces) -> Iterator[Namespace]:
    """A namespace with the devices that the programs are told of, entered for the whole test."""
    made = namespaces.make("node")
    with made.entered():
        add_node_devices(ROUTER)
        for device in ("lxcweb", "lxcclient"):
            run("ip", "link", "add", device, "type", "veth", "peer", "name", f"p{device}")
            run("ip", "link", "set", device, "up")
        yield made


@pytest.fixture
def config(node_namespace: Namespace) -> NodeConfig:
    made = node_config("node-1", NODE, ROUTER, "10.244.1.0/24")
    return replace(made, pod_cidrs=(*made.pod_cidrs, POD_CIDR6), node_ipv6=NODE6, router_ipv6=ROUTER6)


@pytest.fixture
def datapath(config: NodeConfig, pin_dir: str, cache_dir: str) -> Iterator[KernelDatapath]:
    opened = KernelDatapath.open(config, pin_dir=pin_dir, source_dir=SOURCES, cache_dir=cache_dir)
    yield opened
    opened.close()


@pytest.fixture
def node(datapath: KernelDatapath, config: NodeConfig) -> Node:
    web = EndpointRow(
        socket.if_nametoindex("lxcweb"),
        WEB,
        WEB_ID,
        WEB_SUBJECT,
        11,
        "02:00:00:00:01:01",
        "02:00:00:00:01:02",
        ipv6=WEB6,
    )
    client = EndpointRow(
        socket.if_nametoindex("lxcclient"), CLIENT, CLIENT_ID, CLIENT_SUBJECT, 12,
        "02:00:00:00:02:01", "02:00:00:00:02:02", ipv6=CLIENT6,
    )  # fmt: skip
    made = Node(datapath, web, client, config.host_ifindex)
    populate(made)
    return made


def add_node_devices(router: str) -> None:
    """The node's own devices, in the thread's namespace."""
    run("ip", "link", "add", "fimbria_host", "type", "veth", "peer", "name", "fimbria_net")
    run("ip", "link", "add", "fimbria_vxlan", "type", "vxlan", "external", "dstport", "4789")
    run("ip", "address", "add", f"{router}/32", "dev", "fimbria_host")
    for device in ("fimbria_host", "fimbria_net", "fimbria_vxlan"):
        run("ip", "link", "set", device, "up")


def node_config(name: str, address: str, router: str, pod_cidr: str) -> NodeConfig:
    """The configuration for the devices in the thread's namespace."""
    host, net, vxlan = (socket.if_nametoindex(d) for d in ("fimbria_host", "fimbria_net", "fimbria_vxlan"))
    return NodeConfig(name, address, router, (pod_cidr,), host, net, vxlan, map_sizes=SMALL_MAPS)
