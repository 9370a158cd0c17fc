"""What a node's namespace has once: the host veth pair, the overlay device, the routes into both.

    fimbria_host ═ fimbria_net     what the node itself sends to pods goes out of fimbria_host, where the
                                   datapath takes it; the router address lives there
    fimbria_vxlan                  the overlay, one for all peers: the datapath says where a packet goes

Pod CIDRs, the node's own and those of others, are routed via the router address out of fimbria_host, as in
Cilium. The device does not use ARP, so that its own address may be the gateway and nobody answers for pods.

Synchronous, and slow by the standards of this package (ensure: 20 ms): pyroute2 runs an event loop of its own
inside, so these are never called from the loader's event loop, but through its executor thread.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from services.chassis.errors import (
    FailedPrecondition,
    FimbriaError,
    Internal,
    InvalidArgument,
    PermissionDenied,
)
from services.loader.netlink.links import local_mac
from services.loader.netlink.sysctl import write_sysctl

HOST_DEVICE = "fimbria_host"
NET_DEVICE = "fimbria_net"
VXLAN_DEVICE = "fimbria_vxlan"
DEFAULT_VXLAN_PORT = 8472
# Outer IPv4, UDP, VXLAN and the inner Ethernet header.
OVERLAY_OVERHEAD = 50
# Not one of /etc/iproute2/rt_protos: what carries it is Fimbria's to change and to delete.
ROUTE_PROTOCOL = 211

_MAIN_TABLE = 254
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_IFF_UP, _IFF_NOARP = 0x1, 0x80
_ADDR_GEN_MODE_NONE = 1
_IPV6_MIN_MTU = 1280
_MIN_MTU = 576 + OVERLAY_OVERHEAD


@dataclass(frozen=True, slots=True)
class NodeNetworkSettings:
    """``mtu`` (bytes) 0 means that of the device that has ``node_ipv4``; ``vxlan_port`` is a UDP port."""

    node_ipv4: IPv4Address
    router: IPv4Address
    pod_cidrs: tuple[IPv4Network, ...]
    mtu: int = 0
    vxlan_port: int = DEFAULT_VXLAN_PORT


@dataclass(frozen=True, slots=True)
class NodeDevices:
    """The node's devices; ``mtu`` is also the pods', ``route_mtu`` is what fits into the overlay."""

    host_ifindex: int
    net_ifindex: int
    vxlan_ifindex: int
    host_mac: str
    net_mac: str
    vxlan_mac: str
    mtu: int
    route_mtu: int


@dataclass(frozen=True, slots=True)
class _Route:
    dst: IPv4Network
    gateway: IPv4Address | None
    mtu: int


class NodeNetwork:
    """Makes and repairs the node's devices in the namespace of the thread that calls it."""

    def __init__(self, settings: NodeNetworkSettings) -> None:
        self._settings = settings
        self._devices: NodeDevices | None = None

    def ensure(self) -> NodeDevices:
        """Makes what is missing, corrects what is different and leaves the rest alone, traffic included.

        Raises FailedPrecondition (KERNEL_FEATURE_MISSING, NODE_ADDRESS_MISSING, VXLAN_PORT_IN_USE,
        ROUTE_CONFLICT, SYSCTL_READ_ONLY), InvalidArgument (NODE_NETWORK_INVALID), PermissionDenied
        (CAPABILITY_MISSING), Internal (KERNEL_REFUSED).
        """
        settings = self._settings
        for name, value in (
            ("ip_forward", "1"),
            ("conf/all/rp_filter", "0"),
            ("conf/default/rp_filter", "0"),
        ):
            write_sysctl(f"net/ipv4/{name}", value)
        with _open() as ip:
            mtu = settings.mtu or _underlay_mtu(ip, settings.node_ipv4)
            if not _MIN_MTU <= mtu <= 65535:
                raise InvalidArgument(
                    f"mtu {mtu}; expected {_MIN_MTU}..65535",
                    reason="NODE_NETWORK_INVALID",
                    metadata={"mtu": mtu},
                )
            host, net = self._ensure_pair(ip, mtu)
            vxlan = self._ensure_vxlan(ip, mtu)
            for device in (HOST_DEVICE, NET_DEVICE, VXLAN_DEVICE):
                write_sysctl(f"net/ipv4/conf/{device}/rp_filter", "0")
            self._devices = NodeDevices(
                host_ifindex=host["index"],
                net_ifindex=net["index"],
                vxlan_ifindex=vxlan["index"],
                host_mac=self._mac(HOST_DEVICE),
                net_mac=self._mac(NET_DEVICE),
                vxlan_mac=self._mac(VXLAN_DEVICE),
                mtu=mtu,
                route_mtu=mtu - OVERLAY_OVERHEAD,
            )
            self._ensure_address(ip, host["index"])
            self._ensure_routes(ip, self._local_routes())
        return self._devices

    def set_remote_pod_cidrs(self, cidrs: Iterable[IPv4Network]) -> tuple[int, int]:
        """Routes exactly these CIDRs of other nodes to the datapath; returns how many were added and removed.

        To be called after :meth:`ensure`. Raises FailedPrecondition (ROUTE_CONFLICT, NODE_NETWORK_MISSING).
        """
        devices = self._require_devices()
        own = set(self._settings.pod_cidrs)
        wanted = self._local_routes() + [
            _Route(cidr, self._settings.router, devices.route_mtu) for cidr in sorted(set(cidrs) - own)
        ]
        keep = {route.dst for route in wanted}
        with _open() as ip:
            added = self._ensure_routes(ip, wanted)
            stale = [route for route in _own_routes(ip, devices.host_ifindex) if route.dst not in keep]
            for route in stale:
                _call(
                    HOST_DEVICE,
                    ip.route,
                    "del",
                    dst=str(route.dst),
                    oif=devices.host_ifindex,
                    proto=ROUTE_PROTOCOL,
                )
        return added, len(stale)

    def remove(self) -> None:
        """Deletes the devices, and with them the routes; what is not there is not missed."""
        with _open() as ip:
            for device in (HOST_DEVICE, VXLAN_DEVICE):
                found = _link(ip, device)
                if found is not None:
                    _call(device, ip.link, "del", index=found["index"])
        self._devices = None

    # -- devices

    def _ensure_pair(self, ip: Any, mtu: int) -> tuple[Any, Any]:
        host, net = _link(ip, HOST_DEVICE), _link(ip, NET_DEVICE)
        if not (
            host is not None
            and net is not None
            and _kind(host) == _kind(net) == "veth"
            and host.get("link") == net["index"]
            and net.get("link") == host["index"]
        ):
            for half in (HOST_DEVICE, NET_DEVICE):
                left = _link(ip, half)
                if left is not None:
                    _call(half, ip.link, "del", index=left["index"])
            peer = {"ifname": NET_DEVICE, "address": self._mac(NET_DEVICE), "mtu": mtu}
            _call(
                HOST_DEVICE,
                ip.link,
                "add",
                ifname=HOST_DEVICE,
                kind="veth",
                address=self._mac(HOST_DEVICE),
                mtu=mtu,
                peer=peer,
            )
        return self._configure(ip, HOST_DEVICE, mtu, arp=False), self._configure(
            ip, NET_DEVICE, mtu, arp=False
        )

    def _ensure_vxlan(self, ip: Any, mtu: int) -> Any:
        port = self._settings.vxlan_port
        found = _link(ip, VXLAN_DEVICE)
        if found is not None and not _is_overlay(found, port):
            # Port and mode are fixed when the device is made.
            _call(VXLAN_DEVICE, ip.link, "del", index=found["index"])
            found = None
        if found is None:
            _call(
                VXLAN_DEVICE,
                ip.link,
                "add",
                ifname=VXLAN_DEVICE,
                kind="vxlan",
                address=self._mac(VXLAN_DEVICE),
                vxlan_port=port,
                vxlan_collect_metadata=1,
                vxlan_learning=0,
            )
        try:
            return self._configure(ip, VXLAN_DEVICE, mtu, arp=True)
        except FimbriaError as exc:
            if exc.metadata.get("errno") != "EADDRINUSE":
                raise
            raise FailedPrecondition(
                f"UDP port {port}, which the overlay needs, is in use on this node",
                reason="VXLAN_PORT_IN_USE",
                metadata={"port": port},
            ) from exc

    def _configure(self, ip: Any, name: str, mtu: int, *, arp: bool) -> Any:
        """Corrects MAC address, MTU and flags where they differ, and brings the device up."""
        device = _link(ip, name)
        if device is None:
            raise Internal(f"the device {name} vanished", reason="KERNEL_REFUSED", metadata={"device": name})
        index, mac = device["index"], self._mac(name)
        if device.get("address") != mac:
            _call(name, ip.link, "set", index=index, address=mac)
        flags = int(device["flags"])
        if device.get("mtu") != mtu:
            if device.get("mtu") < _IPV6_MIN_MTU and flags & _IFF_UP:
                # With a larger MTU the device gets IPv6, and an address at once unless it is down.
                _call(name, ip.link, "set", index=index, state="down")
                flags &= ~_IFF_UP
            _call(name, ip.link, "set", index=index, mtu=mtu)
        if not flags & _IFF_UP:
            self._no_autoconf(ip, name, index)
        wanted = _IFF_UP | (0 if arp else _IFF_NOARP)
        if flags & (_IFF_UP | _IFF_NOARP) != wanted:
            _call(name, ip.link, "set", index=index, flags=wanted, change=_IFF_UP | _IFF_NOARP)
        return device

    def _no_autoconf(self, ip: Any, name: str, index: int) -> None:
        """Keeps a device that is down from making an IPv6 address when it comes up."""
        spec = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_MODE_NONE)]})]}
        try:
            ip.link("set", index=index, IFLA_AF_SPEC=spec)
        except NetlinkError as exc:
            # No IPv6 in this kernel, or not with this MTU.
            if exc.code != errno.EAFNOSUPPORT:
                raise _kernel_error(exc.code, str(exc), name) from exc

    def _mac(self, device: str) -> str:
        return local_mac(str(self._settings.router), device)

    # -- addresses and routes

    def _ensure_address(self, ip: Any, ifindex: int) -> None:
        router = str(self._settings.router)
        present = False
        for address in ip.get_addr(family=socket.AF_INET, index=ifindex):
            local, length = address.get("local") or address.get("address"), address["prefixlen"]
            if (local, length) == (router, 32):
                present = True
            else:
                _call(HOST_DEVICE, ip.addr, "del", index=ifindex, address=local, prefixlen=length)
        if not present:
            _call(HOST_DEVICE, ip.addr, "add", index=ifindex, address=router, prefixlen=32)

    def _local_routes(self) -> list[_Route]:
        router = self._settings.router
        # The router's own must be there first: it is what makes the gateway of the others valid.
        return [
            _Route(IPv4Network(router), None, 0),
            *(_Route(cidr, router, 0) for cidr in self._settings.pod_cidrs),
        ]

    def _ensure_routes(self, ip: Any, wanted: list[_Route]) -> int:
        ifindex = self._require_devices().host_ifindex
        own = {route.dst: route for route in _own_routes(ip, ifindex)}
        foreign = _foreign_routes(ip, ifindex)
        written = 0
        for route in wanted:
            if own.get(route.dst) == route:
                continue
            if route.dst in foreign:
                raise FailedPrecondition(
                    f"the node already has a route to {route.dst}, which Fimbria needs for pods",
                    reason="ROUTE_CONFLICT",
                    metadata={"cidr": route.dst, "ifindex": foreign[route.dst]},
                )
            request: dict[str, Any] = {
                "dst": str(route.dst),
                "oif": ifindex,
                "proto": ROUTE_PROTOCOL,
                "scope": _SCOPE_UNIVERSE if route.gateway else _SCOPE_LINK,
                "prefsrc": str(self._settings.router),
            }
            if route.gateway:
                request["gateway"] = str(route.gateway)
            if route.mtu:
                request["metrics"] = {"mtu": route.mtu}
            _call(HOST_DEVICE, ip.route, "replace", **request)
            written += 1
        return written

    def _require_devices(self) -> NodeDevices:
        if self._devices is None:
            raise FailedPrecondition("the node's devices are not made yet", reason="NODE_NETWORK_MISSING")
        return self._devices


def _open() -> Any:
    """pyroute2 makes most of its methods at run time: to a type checker it is anything."""
    connect: Any = IPRoute
    return connect()


def _link(ip: Any, name: str) -> Any:
    """The device as pyroute2 shows it, or None."""
    try:
        return next(iter(ip.get_links(ifname=name)), None)
    except NetlinkError as exc:
        if exc.code == errno.ENODEV:
            return None
        raise _kernel_error(exc.code, str(exc), name) from exc


def _kind(link: Any) -> str:
    return str(link.get(("linkinfo", "kind")) or "")


def _is_overlay(link: Any, port: int) -> bool:
    if _kind(link) != "vxlan":
        return False
    data = ("linkinfo", "data")
    return (
        bool(link.get((*data, "vxlan_collect_metadata")))
        and link.get((*data, "vxlan_port")) == port
        and not link.get((*data, "vxlan_learning"))
    )


def _underlay_mtu(ip: Any, node_ipv4: IPv4Address) -> int:
    for address in ip.get_addr(family=socket.AF_INET):
        if str(node_ipv4) in (address.get("local"), address.get("address")):
            device = next(iter(ip.get_links(address["index"])))
            return int(device.get("mtu"))
    raise FailedPrecondition(
        f"no device of this node has the address {node_ipv4}",
        reason="NODE_ADDRESS_MISSING",
        metadata={"node_ipv4": node_ipv4},
    )


def _own_routes(ip: Any, ifindex: int) -> list[_Route]:
    found = []
    for route in ip.get_routes(family=socket.AF_INET, table=_MAIN_TABLE, oif=ifindex):
        if route["proto"] != ROUTE_PROTOCOL:
            continue
        gateway = route.get("gateway")
        found.append(
            _Route(
                IPv4Network(f"{route.get('dst') or '0.0.0.0'}/{route['dst_len']}"),
                IPv4Address(gateway) if gateway else None,
                int(route.get(("metrics", "mtu")) or 0),
            )
        )
    return found


def _foreign_routes(ip: Any, ifindex: int) -> dict[IPv4Network, int]:
    """Routes that are not Fimbria's, and the device each leaves by."""
    found = {}
    for route in ip.get_routes(family=socket.AF_INET, table=_MAIN_TABLE):
        if route["proto"] == ROUTE_PROTOCOL and route.get("oif") == ifindex:
            continue
        found[IPv4Network(f"{route.get('dst') or '0.0.0.0'}/{route['dst_len']}")] = int(route.get("oif") or 0)
    return found


def _call(device: str, operation: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return operation(*args, **kwargs)
    except NetlinkError as exc:
        raise _kernel_error(exc.code, str(exc), device) from exc


def _kernel_error(number: int, text: str, device: str) -> FimbriaError:
    metadata = {"device": device, "errno": errno.errorcode.get(number, str(number))}
    if number in (errno.EPERM, errno.EACCES):
        return PermissionDenied(
            f"{device}: {text}; the loader needs CAP_NET_ADMIN",
            reason="CAPABILITY_MISSING",
            metadata=metadata,
        )
    if number == errno.EOPNOTSUPP:
        feature = "vxlan" if device == VXLAN_DEVICE else "veth"
        return FailedPrecondition(
            f"the kernel has no {feature} devices (CONFIG_{feature.upper()}), which {device} is",
            reason="KERNEL_FEATURE_MISSING",
            metadata={**metadata, "feature": feature},
        )
    return Internal(f"the kernel refused {device}: {text}", reason="KERNEL_REFUSED", metadata=metadata)
