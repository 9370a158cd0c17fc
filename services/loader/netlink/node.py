"""What a node's namespace has once: the host veth pair, the overlay device, the routes into both.

    fimbria_host ═ fimbria_net     what the node itself sends to pods goes out of fimbria_host, where the
                                   datapath takes it; the router address lives there
    fimbria_vxlan                  the overlay, one for all peers: the datapath says where a packet goes

The node's own pod CIDRs are routed out of fimbria_host, IPv4 via the router address. The device does not use
ARP or neighbour discovery, so that its own address may be the gateway and nobody answers for pods. How other
nodes' pod CIDRs are reached is the routing mode: with a tunnel as the node's own, natively via those nodes'
underlay addresses, and then there is no fimbria_vxlan. What the other mode made is removed at start.

Synchronous, and slow by the standards of this package (ensure: 20 ms): pyroute2 runs an event loop of its own
inside, so these are never called from the loader's event loop, but through its executor thread.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Literal, TypeAlias

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from services.chassis.errors import (
    FailedPrecondition,
    FimbriaError,
    Internal,
    InvalidArgument,
    PermissionDenied,
)
from services.loader.netlink import rtnetlink as rt
from services.loader.netlink.links import IPV6_MIN_MTU, local_mac
from services.loader.netlink.node_routes import (
    ROUTE_PROTOCOL,
    Address,
    Network,
    Route,
    delete_route,
    own_routes,
    put_routes,
)
from services.loader.netlink.refusals import kernel_error
from services.loader.netlink.sysctl import (
    accept_no_router,
    allow_ipv6,
    keep_router_while_forwarding,
    require_ipv6,
    write_sysctl,
)

__all__ = [
    "ROUTE_PROTOCOL",
    "NodeDevices",
    "NodeNetwork",
    "NodeNetworkSettings",
    "RemoteNode",
    "RoutingMode",
]

HOST_DEVICE = "fimbria_host"
NET_DEVICE = "fimbria_net"
VXLAN_DEVICE = "fimbria_vxlan"
DEFAULT_VXLAN_PORT = 8472
# Outer IPv4, UDP, VXLAN and the inner Ethernet header.
OVERLAY_OVERHEAD = 50

RoutingMode: TypeAlias = Literal["tunnel", "native"]

_IFF_UP, _IFF_NOARP = 0x1, 0x80
_ADDR_GEN_MODE_NONE = 1
_IPV4_MIN_MTU = 576


@dataclass(frozen=True, slots=True)
class NodeNetworkSettings:
    """``mtu`` (bytes) 0 means that of the device that has ``node_ipv4``; ``vxlan_port`` is a UDP port.

    ``pod_cidrs`` may hold both families; each of them has its ``router`` or ``router6``. ``devices`` are the
    node's devices towards the rest of the world; none named means those that have the node's addresses.
    """

    node_ipv4: IPv4Address
    router: IPv4Address | None
    pod_cidrs: tuple[Network, ...]
    mtu: int = 0
    vxlan_port: int = DEFAULT_VXLAN_PORT
    node_ipv6: IPv6Address | None = None
    router6: IPv6Address | None = None
    routing_mode: RoutingMode = "tunnel"
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeDevices:
    """The node's devices; ``mtu`` is also the pods', ``route_mtu`` is what may be sent to other nodes' pods.

    Without an overlay ``vxlan_ifindex`` is 0 and ``vxlan_mac`` empty. ``nics`` are the devices towards the
    rest of the world, by name and index.
    """

    host_ifindex: int
    net_ifindex: int
    vxlan_ifindex: int
    host_mac: str
    net_mac: str
    vxlan_mac: str
    mtu: int
    route_mtu: int
    nics: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class RemoteNode:
    """Another node: where its pods are reached."""

    name: str
    ipv4: IPv4Address
    ipv6: IPv6Address | None
    pod_cidrs: tuple[Network, ...]


class NodeNetwork:
    """Makes and repairs the node's devices in the namespace of the thread that calls it."""

    def __init__(self, settings: NodeNetworkSettings) -> None:
        self._settings = settings
        self._devices: NodeDevices | None = None
        # By IP version: the devices that have the node's own addresses.
        self._underlay: dict[int, int] = {}

    def ensure(self) -> NodeDevices:
        """Makes what is missing, corrects what is different and leaves the rest alone, traffic included.

        Raises FailedPrecondition (KERNEL_FEATURE_MISSING, NODE_ADDRESS_MISSING, DEVICE_MISSING,
        VXLAN_PORT_IN_USE, ROUTE_CONFLICT, SYSCTL_READ_ONLY), InvalidArgument (NODE_NETWORK_INVALID),
        PermissionDenied (CAPABILITY_MISSING), Internal (KERNEL_REFUSED).
        """
        settings = self._settings
        self._check()
        for name, value in (
            ("ip_forward", "1"),
            ("conf/all/rp_filter", "0"),
            ("conf/default/rp_filter", "0"),
        ):
            write_sysctl(f"net/ipv4/{name}", value)
        with _open() as ip:
            self._underlay, underlay_mtu = self._find_underlay(ip)
            nics = self._nics(ip)
            if settings.router6:
                for nic, _ in nics:
                    keep_router_while_forwarding(nic)
                write_sysctl("net/ipv6/conf/all/forwarding", "1")
            mtu = settings.mtu or underlay_mtu
            route_mtu = self._route_mtu(mtu)
            host, net = self._ensure_pair(ip, mtu)
            overlay = settings.routing_mode == "tunnel"
            if not overlay:
                _delete_link(ip, VXLAN_DEVICE)
            vxlan = self._ensure_vxlan(ip, mtu) if overlay else {"index": 0}
            for device in (HOST_DEVICE, NET_DEVICE, *([VXLAN_DEVICE] if overlay else [])):
                write_sysctl(f"net/ipv4/conf/{device}/rp_filter", "0")
            self._devices = NodeDevices(
                host_ifindex=host["index"],
                net_ifindex=net["index"],
                vxlan_ifindex=vxlan["index"],
                host_mac=self._mac(HOST_DEVICE),
                net_mac=self._mac(NET_DEVICE),
                vxlan_mac=self._mac(VXLAN_DEVICE) if overlay else "",
                mtu=mtu,
                route_mtu=route_mtu,
                nics=nics,
            )
            self._ensure_addresses(ip, host["index"])
            local = self._local_routes(host["index"])
            put_routes(ip, local)
            for route in own_routes(ip):
                # Of the other mode's routes none leads anywhere now.
                if (route.oif == host["index"]) != overlay and route not in local:
                    delete_route(ip, route)
        return self._devices

    def set_remote_nodes(self, nodes: Iterable[RemoteNode]) -> tuple[int, int]:
        """Routes exactly the pod CIDRs of these nodes, as the routing mode has it; returns how many routes
        were written and how many removed.

        To be called after :meth:`ensure`. A family that this node's pods do not have is left out. Raises
        FailedPrecondition (ROUTE_CONFLICT, NODE_NETWORK_MISSING, NODE_NOT_ON_LINK when native routing cannot
        reach some of them; the others are routed then).
        """
        devices = self._require_devices()
        own = set(self._settings.pod_cidrs)
        families = {cidr.version for cidr in own}
        wanted = self._local_routes(devices.host_ifindex)
        names: dict[Network, str] = {}
        problems: list[str] = []
        for node in nodes:
            for cidr in node.pod_cidrs:
                if cidr in own or cidr.version not in families:
                    continue
                names[cidr] = node.name
                route = self._remote_route(devices, node, cidr)
                if route is None:
                    problems.append(f"{node.name} has no IPv6 underlay address for {cidr}")
                else:
                    wanted.append(route)
        with _open() as ip:
            # Before the others: an address may have moved from one node's CIDR to another's.
            kept = {(route.dst, route.oif) for route in wanted}
            stale = [route for route in own_routes(ip) if (route.dst, route.oif) not in kept]
            for route in stale:
                delete_route(ip, route)
            written, unreachable = put_routes(ip, wanted)
        problems += [
            f"{names.get(route.dst, 'this node')}'s address {route.gateway} is on no network of this node's "
            f"device, so that {route.dst} cannot be routed to it"
            for route in unreachable
        ]
        if problems:
            raise FailedPrecondition(
                f"native routing needs nodes on one network: {'; '.join(problems)}",
                reason="NODE_NOT_ON_LINK",
                metadata={"cidrs": len(problems)},
            )
        return written, len(stale)

    def set_own(
        self,
        pod_cidrs: tuple[Network, ...],
        router: IPv4Address | None,
        router6: IPv6Address | None,
    ) -> int:
        """These are the node's own pod CIDRs and routers from now on; returns how many routes were written.

        Routes to CIDRs that are the node's no longer go with the next :meth:`set_remote_nodes`, which knows
        whose they are by then; other routers are in force with the next :meth:`ensure`, and so are the routes
        of their CIDRs. To be called after :meth:`ensure`, and raises as that.
        """
        before = self._settings
        self._settings = replace(before, pod_cidrs=pod_cidrs, router=router, router6=router6)
        devices = self._require_devices()
        if (before.router, before.router6) != (router, router6):
            return 0
        with _open() as ip:
            return put_routes(ip, self._local_routes(devices.host_ifindex))[0]

    def remove(self) -> None:
        """Deletes the devices and the routes; what is not there is not missed."""
        with _open() as ip:
            for device in (HOST_DEVICE, VXLAN_DEVICE):
                _delete_link(ip, device)
            for route in own_routes(ip):
                delete_route(ip, route)
        self._devices = None

    # -- what is asked for

    def _check(self) -> None:
        settings = self._settings
        if settings.router6:
            require_ipv6()
        if settings.router6 and settings.routing_mode == "native" and settings.node_ipv6 is None:
            raise InvalidArgument(
                "native routing of the pods' IPv6 addresses needs an IPv6 address of the node: set "
                "FIMBRIA_NODE_IPV6, or use a pool of IPv4 alone",
                reason="NODE_NETWORK_INVALID",
                metadata={"variable": "FIMBRIA_NODE_IPV6"},
            )

    def _route_mtu(self, mtu: int) -> int:
        settings = self._settings
        overhead = OVERLAY_OVERHEAD if settings.routing_mode == "tunnel" else 0
        least = overhead + (IPV6_MIN_MTU if settings.router6 else _IPV4_MIN_MTU)
        if not least <= mtu <= 65535:
            raise InvalidArgument(
                f"mtu {mtu}; expected {least}..65535",
                reason="NODE_NETWORK_INVALID",
                metadata={"mtu": mtu},
            )
        return mtu - overhead

    def _find_underlay(self, ip: Any) -> tuple[dict[int, int], int]:
        """The devices of the node's addresses by IP version, and the MTU of the IPv4 one."""
        found: dict[int, int] = {}
        mtu = 0
        for version, family, wanted in (
            (4, socket.AF_INET, self._settings.node_ipv4),
            (6, socket.AF_INET6, self._settings.node_ipv6),
        ):
            if wanted is None:
                continue
            for address in ip.get_addr(family=family):
                held = {address.get("local"), address.get("address")} - {None}
                if wanted in {ip_address(each) for each in held}:
                    found[version] = address["index"]
                    break
            else:
                raise FailedPrecondition(
                    f"no device of this node has the address {wanted}",
                    reason="NODE_ADDRESS_MISSING",
                    metadata={f"node_ipv{version}": wanted},
                )
        mtu = int(next(iter(ip.get_links(found[4]))).get("mtu"))
        return found, mtu

    def _nics(self, ip: Any) -> tuple[tuple[str, int], ...]:
        if not self._settings.devices:
            indexes = dict.fromkeys(self._underlay.values())
            return tuple((str(next(iter(ip.get_links(each))).get("ifname")), each) for each in indexes)
        found = []
        for name in self._settings.devices:
            link = _link(ip, name)
            if link is None:
                raise FailedPrecondition(
                    f"FIMBRIA_DEVICES names {name}, and this node has no such device",
                    reason="DEVICE_MISSING",
                    metadata={"device": name, "variable": "FIMBRIA_DEVICES"},
                )
            found.append((name, int(link["index"])))
        return tuple(found)

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
            if device.get("mtu") < IPV6_MIN_MTU and flags & _IFF_UP:
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
        return local_mac(str(self._settings.router or self._settings.router6), device)

    # -- addresses and routes

    def _ensure_addresses(self, ip: Any, ifindex: int) -> None:
        settings = self._settings
        if settings.router6:
            allow_ipv6(HOST_DEVICE)
            accept_no_router(HOST_DEVICE)
        missing = {f"{each}/{each.max_prefixlen}" for each in (settings.router, settings.router6) if each}
        for family in (socket.AF_INET, socket.AF_INET6):
            for address in ip.get_addr(family=family, index=ifindex):
                local, length = address.get("local") or address.get("address"), address["prefixlen"]
                if f"{local}/{length}" in missing:
                    missing.remove(f"{local}/{length}")
                else:
                    _call(HOST_DEVICE, ip.addr, "del", index=ifindex, address=local, prefixlen=length)
        try:
            with rt.RouteSocket() as node:
                node.request([rt.add_address(ifindex, each.partition("/")[0]) for each in sorted(missing)])
        except OSError as exc:
            raise kernel_error(exc, HOST_DEVICE) from exc

    def _local_routes(self, oif: int) -> list[Route]:
        settings = self._settings
        routes = []
        if settings.router:
            # First: it is what makes the gateway of the others valid.
            routes.append(Route(ip_network(settings.router), oif, source=settings.router))
        return routes + [self._host_route(oif, cidr) for cidr in settings.pod_cidrs]

    def _host_route(self, oif: int, cidr: Network, mtu: int = 0) -> Route:
        """Out of fimbria_host. IPv6 has no use for a gateway there, and takes no address of the node for
        one.
        """
        router: Address | None = self._settings.router if cidr.version == 4 else self._settings.router6
        return Route(cidr, oif, router if cidr.version == 4 else None, mtu, router)

    def _remote_route(self, devices: NodeDevices, node: RemoteNode, cidr: Network) -> Route | None:
        settings = self._settings
        if settings.routing_mode == "tunnel":
            return self._host_route(devices.host_ifindex, cidr, devices.route_mtu)
        gateway: Address | None = node.ipv4 if cidr.version == 4 else node.ipv6
        source: Address | None = settings.node_ipv4 if cidr.version == 4 else settings.node_ipv6
        if gateway is None:
            return None
        return Route(cidr, self._underlay[cidr.version], gateway, devices.route_mtu, source)

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


def _delete_link(ip: Any, name: str) -> None:
    found = _link(ip, name)
    if found is not None:
        _call(name, ip.link, "del", index=found["index"])


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
