"""netkit pairs (Linux >= 6.7): like veth, but a program of the node's runs in the pod's own transmission.

The pair is in L2 mode: the pod resolves the router's address as on a veth. What the pod sends is dropped by
the device itself until a program is attached for it (:mod:`services.loader.bpf.netkit`), and nobody in the
pod can change that: only the node's side takes settings. What the node sends the device lets through: the
programs for that are on the egress of the node's side. A program of the device's own would come too late
there, when the kernel has wiped the packet's ingress device and mark: it could not tell the node's packets
from those of others.
"""

from __future__ import annotations

import errno
from typing import Literal

from services.chassis.errors import FailedPrecondition
from services.loader.netlink import rtnetlink as rt
from services.loader.netlink.refusals import kernel_error

KIND = "netkit"
DeviceKind = Literal["veth", "netkit"]

_IFLA_PEER_INFO, _IFLA_POLICY, _IFLA_PEER_POLICY, _IFLA_MODE = 1, 3, 4, 5
_MODE_L2 = 0
_PASS, _DROP = 0, 2
_NO_POLICY = 1


def create_netkit(
    name: str, mac: str, mtu: int, peer_name: str, peer_mac: str, peer_netns_fd: int
) -> rt.Message:
    """A netkit pair whose peer, the pod's side, is born in another namespace and sends nothing yet."""
    options = [(_IFLA_MODE, _MODE_L2), (_IFLA_POLICY, _PASS), (_IFLA_PEER_POLICY, _DROP)]
    return rt.create_pair(KIND, _IFLA_PEER_INFO, options, name, mac, mtu, peer_name, peer_mac, peer_netns_fd)


def kernel_has_netkit() -> bool:
    """Whether the kernel makes such devices; none is made. Raises FimbriaError."""
    with rt.RouteSocket() as node:
        try:
            # One who knows the kind refuses the policy, with EINVAL, before anything comes to be.
            node.request([rt.create_device("netkit0", KIND, [(_IFLA_POLICY, _NO_POLICY)])])
        except rt.NetlinkError as exc:
            if exc.errno == errno.EINVAL:
                return True
            if exc.errno in (errno.EOPNOTSUPP, errno.ENOTSUP):
                return False
            raise kernel_error(exc, KIND) from exc
    raise AssertionError("the kernel made a netkit device with a policy that there is not")


def device_kind(wanted: Literal["veth", "netkit", "auto"]) -> DeviceKind:
    """The kind of endpoint device that the setting comes to on this kernel.

    Raises FailedPrecondition (KERNEL_FEATURE_MISSING) where netkit is asked for and missing.
    """
    if wanted == "veth":
        return "veth"
    if kernel_has_netkit():
        return "netkit"
    if wanted == "auto":
        return "veth"
    raise FailedPrecondition(
        "FIMBRIA_ENDPOINT_DEVICE is netkit, which this kernel lacks: Linux has it from 6.7 on; "
        "expected veth or auto",
        reason="KERNEL_FEATURE_MISSING",
        metadata={"feature": "netkit", "variable": "FIMBRIA_ENDPOINT_DEVICE"},
    )
