"""What kind of device endpoints get on this kernel, whichever it is."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address

import pytest

from services.chassis.errors import FailedPrecondition
from services.loader.netlink import rtnetlink as rt
from services.loader.netlink.links import LinkSpec, create_endpoint_link, list_endpoint_links
from services.loader.netlink.netkit import device_kind, kernel_has_netkit
from tests.kernel.netlink.namespaces import Namespace

pytestmark = pytest.mark.kernel


def test_asking_whether_there_is_netkit_makes_nothing(node: Namespace) -> None:
    def work() -> None:
        with rt.RouteSocket() as route:
            before = rt.links(route.request([rt.dump_links()])[0])
            assert kernel_has_netkit() == kernel_has_netkit()
            assert rt.links(route.request([rt.dump_links()])[0]) == before

    node.run(work)


def test_automatically_it_is_the_best_that_there_is() -> None:
    assert device_kind("veth") == "veth"
    assert device_kind("auto") == ("netkit" if kernel_has_netkit() else "veth")


def test_netkit_that_is_missing_is_refused_by_name(node: Namespace, pod: Namespace) -> None:
    spec = LinkSpec(
        "lxc0123456789ab", pod.fd, "eth0", IPv4Address("10.9.0.2"), IPv4Address("10.9.0.1"), 1450, 1450,
        kind="netkit",
    )  # fmt: skip
    if kernel_has_netkit():
        assert device_kind("netkit") == "netkit"
        assert node.run(lambda: create_endpoint_link(spec)).ifname == "eth0"
        return
    with pytest.raises(FailedPrecondition, match="FIMBRIA_ENDPOINT_DEVICE is netkit") as refused:
        device_kind("netkit")
    assert refused.value.reason == "KERNEL_FEATURE_MISSING"
    with pytest.raises(FailedPrecondition) as missing:
        node.run(lambda: create_endpoint_link(spec))
    assert missing.value.reason == "KERNEL_FEATURE_MISSING"
    assert missing.value.metadata["feature"] == "netkit"
    assert node.run(list_endpoint_links) == []


def test_the_kernels_word_for_an_unknown_kind_is_known() -> None:
    with rt.RouteSocket() as route, pytest.raises(rt.NetlinkError) as refused:
        route.request([rt.create_device("fimbria-none", "fimbria")])
    assert refused.value.errno == errno.EOPNOTSUPP
