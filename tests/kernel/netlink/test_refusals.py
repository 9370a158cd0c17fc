"""Kernels and processes that cannot do what a node needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.chassis.errors import FailedPrecondition
from services.loader.netlink import node as node_module
from services.loader.netlink.sysctl import write_sysctl
from tests.kernel.netlink.namespaces import Namespace

pytestmark = pytest.mark.kernel

REPOSITORY = Path(__file__).resolve().parents[3]

MAKE_A_NODE = """
from ipaddress import IPv4Address, IPv4Network
from services.chassis.errors import FimbriaError
from services.loader.netlink.node import NodeNetwork, NodeNetworkSettings
cidr = IPv4Network("10.9.0.0/24")
settings = NodeNetworkSettings(IPv4Address("192.0.2.1"), IPv4Address("10.9.0.1"), (cidr,))
try:
    NodeNetwork(settings).ensure()
except FimbriaError as exc:
    print(exc.reason)
"""

MAKE_A_LINK = """
import os, sys
from ipaddress import IPv4Address
from services.chassis.errors import FimbriaError
from services.loader.netlink.links import LinkSpec, create_endpoint_link
fd = os.open(sys.argv[1], os.O_RDONLY)
spec = LinkSpec("lxc000000000001", fd, "eth0", IPv4Address("10.9.0.2"), IPv4Address("10.9.0.1"), 1500, 1450)
try:
    create_endpoint_link(spec)
except FimbriaError as exc:
    print(exc.reason)
"""


def without(node: Namespace, capability: str, program: str, *arguments: str) -> str:
    """What a program prints that runs in the node's namespace without one capability."""
    drop = f"-{capability}"
    return subprocess.run(
        [
            *("nsenter", f"--net={node.path}"),
            *("setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"),
            *(sys.executable, "-c", program, *arguments),
        ],
        check=True,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    ).stdout.strip()


def test_a_node_without_net_admin_is_told_what_is_missing(node: Namespace) -> None:
    node.command("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0")
    node.command("sysctl", "-q", "-w", "net.ipv4.conf.default.rp_filter=0")
    assert without(node, "net_admin", MAKE_A_NODE) == "CAPABILITY_MISSING"


@pytest.mark.parametrize("capability", ["net_admin", "sys_admin"])
def test_a_link_without_privileges_is_told_what_is_missing(
    node: Namespace, pod: Namespace, capability: str
) -> None:
    assert without(node, capability, MAKE_A_LINK, pod.path) == "CAPABILITY_MISSING"
    assert "lxc" not in node.command("ip", "link")


def test_a_kernel_without_a_kind_of_device_is_told_by_its_name(node: Namespace) -> None:
    def make() -> None:
        with node_module._open() as ip:
            node_module._call("fimbria_vxlan", ip.link, "add", ifname="fimbria_vxlan", kind="fimbria0")

    with pytest.raises(FailedPrecondition, match="CONFIG_VXLAN") as caught:
        node.run(make)
    assert caught.value.reason == "KERNEL_FEATURE_MISSING"
    assert caught.value.metadata["feature"] == "vxlan"


def test_a_setting_that_does_not_exist_is_named() -> None:
    with pytest.raises(FailedPrecondition, match="net/ipv4/fimbria") as caught:
        write_sysctl("net/ipv4/fimbria", "1")
    assert caught.value.reason == "KERNEL_FEATURE_MISSING"


def test_settings_are_written_only_when_they_differ(node: Namespace) -> None:
    node.command("sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
    assert node.run(lambda: write_sysctl("net/ipv4/ip_forward", "1")) is True
    assert node.run(lambda: write_sysctl("net/ipv4/ip_forward", "1")) is False
