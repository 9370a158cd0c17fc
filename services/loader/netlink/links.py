"""A pod's link: a pair of devices, veth or netkit, between the node's namespace and the pod's.

The pod gets one address of each family as a /32 or /128, and everything it sends goes to the node's router
address of that family, which no device on that link has: the datapath answers for it. Nothing in the node's
routing table names the pod, unless :mod:`~services.loader.netlink.endpoint_routes` is asked to.

All functions are synchronous, take about a millisecond (a deletion 15: the kernel waits a grace period), and
work in the namespace of the calling thread; the loader calls them through one executor thread.
"""

from __future__ import annotations

import errno
import hashlib
import socket
import time
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from services.chassis.errors import AlreadyExists, FailedPrecondition, FimbriaError, InvalidArgument
from services.loader.netlink import rtnetlink as rt
from services.loader.netlink.namespace import NamespaceThread
from services.loader.netlink.netkit import DeviceKind, create_netkit
from services.loader.netlink.refusals import kernel_error
from services.loader.netlink.source_routes import (
    forget_source_rules,
    has_default_route,
    source_route_problems,
    source_routes,
)
from services.loader.netlink.sysctl import accept_no_router, allow_ipv6

ENDPOINT_PREFIX = "lxc"
_NAME_LENGTH = 15
# Below this no IPv4 host need accept what it is sent; above it no veth goes.
_MIN_MTU, _MAX_MTU = 576, 65535
# RFC 8200, 5: below it a device has no IPv6.
IPV6_MIN_MTU = 1280
_READY_SECONDS = 0.2

_KINDS: tuple[DeviceKind, ...] = ("veth", "netkit")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)

_netns_thread = NamespaceThread()


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """A link to make; each family has both its address and its router, or neither.

    ``netns_fd`` is the pod's network namespace. ``mtu`` is the devices' in bytes, ``route_mtu`` what a packet
    may have that leaves by the default routes. ``pod_mac`` is made from ``host_name`` when it is empty.
    ``default_route``: whether the pod's default routes lead through this link; None: those of a family that
    the pod has none of yet. Without them, see :mod:`~services.loader.netlink.source_routes`.
    """

    host_name: str
    netns_fd: int
    ifname: str
    address: IPv4Address | None
    router: IPv4Address | None
    mtu: int
    route_mtu: int
    pod_mac: str = ""
    address6: IPv6Address | None = None
    router6: IPv6Address | None = None
    default_route: bool | None = None
    kind: DeviceKind = "veth"

    @property
    def gateways(self) -> list[tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address]]:
        """An address and its router of each family that the link has."""
        pairs = ((self.address, self.router), (self.address6, self.router6))
        return [(address, router) for address, router in pairs if address is not None and router is not None]


@dataclass(frozen=True, slots=True)
class Link:
    """A link that was made: ``ifindex`` on the node, ``pod_ifindex`` in the pod, MACs as ``aa:bb:…``.
    ``default_routes`` has the IP versions whose default route leads through it.
    """

    host_name: str
    ifindex: int
    host_mac: str
    ifname: str
    pod_ifindex: int
    pod_mac: str
    mtu: int
    default_routes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PreparedLink:
    """A pair of devices that has no addresses yet: the node's side, which is down, and the pod's."""

    host: rt.LinkInfo
    pod: rt.LinkInfo
    host_mac: str
    pod_mac: str


@dataclass(frozen=True, slots=True)
class HostLink:
    """The node's side of a link, as the kernel has it."""

    name: str
    ifindex: int
    mac: str
    mtu: int
    up: bool


def endpoint_device(container_id: str, ifname: str) -> str:
    """The name of the node's side for an attachment: ``lxc`` and 12 hex digits."""
    return ENDPOINT_PREFIX + hashlib.sha256(f"{container_id}/{ifname}".encode()).hexdigest()[:12]


def local_mac(*parts: str) -> str:
    """A locally administered unicast MAC address that depends on nothing but the parts."""
    raw = bytearray(hashlib.sha256("/".join(parts).encode()).digest()[:6])
    raw[0] = (raw[0] & 0xFC) | 0x02
    return raw.hex(":")


def link_local(mac: str) -> str:
    """The link-local IPv6 address that a device with this MAC address makes itself (RFC 4291, appendix A)."""
    raw = bytearray(rt.mac_bytes(mac))
    raw[0] ^= 0x02
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + raw[:3] + b"\xff\xfe" + raw[3:]))


def prepare_endpoint_link(spec: LinkSpec) -> PreparedLink:
    """Makes what needs no address: both devices, the pod's side and its loopback up.

    ``spec`` need not have addresses yet. Replaces what an interrupted call left behind, and raises, as
    :func:`create_endpoint_link`.
    """
    _check_device(spec)
    host_mac = local_mac(spec.host_name, "host")
    pod_mac = spec.pod_mac or local_mac(spec.host_name, "pod")
    with rt.RouteSocket() as node, _pod_socket(spec.netns_fd) as pod:
        host = _create_pair(node, spec, host_mac, pod_mac)
        try:
            return PreparedLink(host, _open_pod(pod, spec.ifname), host_mac, pod_mac)
        except BaseException as exc:
            _delete(node, spec.host_name)
            if isinstance(exc, OSError):
                raise _refused(exc, spec) from exc
            raise


def create_endpoint_link(spec: LinkSpec, prepared: PreparedLink | None = None, *, up: bool = True) -> Link:
    """Makes the link: both devices, the pod's addresses and routes, the pod's loopback up; of one that is
    ``prepared``, what is missing.

    With ``up=False`` the node's side stays down, so that no packet passes before the datapath is attached;
    :func:`set_endpoint_link_up` opens it. A link of the same ``host_name`` that an interrupted call left
    behind is replaced. Any failure leaves nothing behind.

    Raises AlreadyExists (INTERFACE_NAME_TAKEN) when the pod has an interface of that name, FailedPrecondition
    (ROUTE_TAKEN, KERNEL_FEATURE_MISSING, SYSCTL_READ_ONLY), InvalidArgument (NETNS_INVALID,
    LINK_SPEC_INVALID), PermissionDenied, Unavailable (KERNEL_TIMEOUT), Internal (KERNEL_REFUSED).
    """
    _check(spec)
    made = prepared or prepare_endpoint_link(spec)
    with rt.RouteSocket() as node, _pod_socket(spec.netns_fd) as pod:
        try:
            if spec.address6 is not None:
                allow_ipv6(spec.host_name)
                accept_no_router(spec.host_name)
            defaults = _default_routes(pod, spec)
            _configure_pod(pod, made.pod.ifindex, spec, made.pod_mac, defaults)
            if up:
                _bring_up(node, spec.host_name)
        except BaseException as exc:
            _delete(node, spec.host_name)
            if isinstance(exc, OSError):
                raise _refused(exc, spec) from exc
            raise
    return Link(
        host_name=spec.host_name,
        ifindex=made.host.ifindex,
        host_mac=made.host_mac,
        ifname=spec.ifname,
        pod_ifindex=made.pod.ifindex,
        pod_mac=made.pod_mac,
        mtu=spec.mtu,
        default_routes=defaults,
    )


def set_endpoint_link_up(host_name: str) -> None:
    """Brings the node's side up; when this returns, what the pod sends is not lost for want of a queue.

    Raises FailedPrecondition (LINK_GONE) when there is no such device.
    """
    with rt.RouteSocket() as node:
        try:
            _bring_up(node, host_name)
        except OSError as exc:
            if exc.errno == errno.ENODEV:
                raise FailedPrecondition(
                    f"the device {host_name} is gone", reason="LINK_GONE", metadata={"device": host_name}
                ) from exc
            raise kernel_error(exc, host_name) from exc


def delete_endpoint_link(host_name: str) -> bool:
    """Deletes a link, both sides; returns whether there was one. Raises as :func:`create_endpoint_link`."""
    with rt.RouteSocket() as node:
        try:
            return _delete(node, host_name)
        except OSError as exc:
            raise kernel_error(exc, host_name) from exc


def forget_pod_rules(netns_fd: int) -> None:
    """Removes what a link that is gone has left in its pod: rules that no device belongs to. A pod that
    cannot be entered has none. Raises Unavailable, Internal.
    """
    try:
        forget_source_rules(netns_fd, _netns_thread)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise kernel_error(exc, "the pod's rules") from exc


def is_endpoint_device(link: rt.LinkInfo) -> bool:
    """Whether a device of the node is, by kind and name, the node's side of a link."""
    return link.kind in _KINDS and link.name.startswith(ENDPOINT_PREFIX) and len(link.name) == _NAME_LENGTH


def list_endpoint_links() -> list[HostLink]:
    """The node's sides of all links of this namespace, by name. Raises Unavailable, Internal."""
    with rt.RouteSocket() as node:
        try:
            (answer,) = node.request([rt.dump_links()])
        except OSError as exc:
            raise kernel_error(exc, "the list of devices") from exc
    found = [
        HostLink(link.name, link.ifindex, link.mac, link.mtu, link.up)
        for link in rt.links(answer)
        if is_endpoint_device(link)
    ]
    return sorted(found, key=lambda link: link.name)


def check_endpoint_link(spec: LinkSpec, default_routes: tuple[int, ...] = (4, 6)) -> list[str]:
    """How a link differs from the one that ``spec`` would make, in words; empty when it does not.
    ``default_routes`` are those of :class:`Link`.

    Raises InvalidArgument (NETNS_INVALID) when the pod's namespace cannot be entered, Unavailable, Internal.
    """
    with rt.RouteSocket() as node, _pod_socket(spec.netns_fd) as pod:
        try:
            host, inside = _find(node, spec.host_name), _find(pod, spec.ifname)
            # One at a time: a socket has no more than one listing under way.
            held, routes = _held(pod), _routes(pod)
            further = _further_problems(pod, inside.ifindex, spec, default_routes) if inside else []
        except OSError as exc:
            raise kernel_error(exc, spec.host_name) from exc
    problems: list[str] = []
    if host is None:
        problems.append(f"the node has no device {spec.host_name}")
    else:
        problems += _device_problems(host, spec, local_mac(spec.host_name, "host"))
    if inside is None:
        problems.append(f"the pod has no interface {spec.ifname}")
        return problems
    problems += _device_problems(inside, spec, spec.pod_mac or local_mac(spec.host_name, "pod"))
    if host is not None and (host.peer_ifindex, inside.peer_ifindex) != (inside.ifindex, host.ifindex):
        problems.append(f"{spec.host_name} and the pod's {spec.ifname} are not the two ends of one link")
    for address in (spec.address, spec.address6):
        if address is not None and (inside.ifindex, _prefix(address)) not in held:
            problems.append(f"{spec.ifname} does not have the address {_prefix(address)}")
    return problems + _route_problems(routes, inside.ifindex, spec, default_routes) + further


# -- making


def _create_pair(node: rt.RouteSocket, spec: LinkSpec, host_mac: str, pod_mac: str) -> rt.LinkInfo:
    pair = create_netkit if spec.kind == "netkit" else rt.create_veth
    create = pair(spec.host_name, host_mac, spec.mtu, spec.ifname, pod_mac, spec.netns_fd)
    try:
        try:
            node.request([create])
        except rt.NetlinkError as exc:
            # Either name may be the one that is taken. The node's belongs to this attachment alone: what is
            # there was left by a loader that was killed, and is of no use to anyone.
            if exc.errno != errno.EEXIST or not _delete(node, spec.host_name):
                raise
            node.request([create])
    except OSError as exc:
        raise _refused(exc, spec) from exc
    try:
        configure = [
            rt.no_reverse_path_filter(spec.host_name),
            rt.no_autoconf(spec.host_name),
            rt.get_link(spec.host_name),
        ]
        return rt.links(node.request(configure)[-1])[0]
    except BaseException as exc:
        _delete(node, spec.host_name)
        if isinstance(exc, OSError):
            raise _refused(exc, spec) from exc
        raise


def _default_routes(pod: rt.RouteSocket, spec: LinkSpec) -> tuple[int, ...]:
    """The IP versions whose default route is to lead through the link."""
    if spec.default_route is False:
        return ()
    families = {4: socket.AF_INET, 6: socket.AF_INET6}
    versions = [address.version for address, _ in spec.gateways]
    free = tuple(version for version in versions if not has_default_route(pod, families[version]))
    if spec.default_route and len(free) < len(versions):
        (taken, *_) = (version for version in versions if version not in free)
        raise FailedPrecondition(
            f"network configuration: isDefaultGateway: got true, and the pod has an IPv{taken} default "
            "route; expected false, or a pod without",
            reason="ROUTE_TAKEN",
            metadata={"ifname": spec.ifname, "family": str(taken)},
        )
    return free


def _open_pod(pod: rt.RouteSocket, ifname: str) -> rt.LinkInfo:
    answers = pod.request(
        [
            rt.set_up("lo"),
            rt.no_reverse_path_filter(ifname),
            rt.no_autoconf(ifname),
            rt.set_up(ifname),
            rt.get_link(ifname),
        ]
    )
    return rt.links(answers[-1])[0]


def _configure_pod(
    pod: rt.RouteSocket, ifindex: int, spec: LinkSpec, pod_mac: str, default_routes: tuple[int, ...]
) -> None:
    requests = []
    for address, router in spec.gateways:
        if address.version == 6:
            _netns_thread.run(spec.netns_fd, partial(_prepare_ipv6, spec.ifname))
            # Some programs cannot do without. Made by hand it is there at once, and asks for no router.
            requests.append(rt.add_address(ifindex, link_local(pod_mac), 64))
        requests.append(rt.add_address(ifindex, str(address)))
        if address.version not in default_routes:
            requests += source_routes(ifindex, str(address), str(router), spec.route_mtu)
            continue
        # Whatever else the pod has an IPv6 route to, the router is here.
        onlink = address.version == 6
        requests += [
            rt.add_link_route(ifindex, str(router)),
            rt.add_default_route(ifindex, str(router), spec.route_mtu, onlink=onlink),
        ]
    pod.request(requests)


def _prepare_ipv6(ifname: str) -> None:
    """What netlink has no words for; in the pod's namespace."""
    allow_ipv6(ifname)
    accept_no_router(ifname)


def _bring_up(node: rt.RouteSocket, host_name: str) -> None:
    (host,) = rt.links(node.request([rt.set_up(host_name), rt.get_link(host_name)])[1])
    if host.peer_netnsid is None:
        return
    # The pod's side, which was up before, learns of its carrier from a kernel worker and drops what it is
    # given until then; one in ten pods lost its first packet that way, and with it a second. Asking for the
    # device makes kernels from 6.8 do that work at once, and tells on older ones whether it is done.
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        (peer,) = rt.links(node.request([rt.get_peer(host.peer_netnsid, host.peer_ifindex)])[0])
        if peer.ready or not peer.up:
            return
        time.sleep(0.0005)


def _delete(node: rt.RouteSocket, name: str) -> bool:
    try:
        node.request([rt.delete_link(name)])
    except rt.NetlinkError as exc:
        if exc.errno == errno.ENODEV:
            return False
        raise
    return True


def _pod_socket(netns_fd: int) -> rt.RouteSocket:
    try:
        return _netns_thread.open_socket(netns_fd)
    except OSError as exc:
        if exc.errno == errno.EPERM:
            raise kernel_error(exc, "the pod's namespace") from exc
        raise InvalidArgument(
            f"the pod's network namespace cannot be entered: {exc.strerror}", reason="NETNS_INVALID"
        ) from exc


def _check_device(spec: LinkSpec) -> None:
    if not _MIN_MTU <= spec.route_mtu <= spec.mtu <= _MAX_MTU:
        raise InvalidArgument(
            f"mtu {spec.mtu} and route mtu {spec.route_mtu}; "
            f"expected {_MIN_MTU} <= route mtu <= mtu <= {_MAX_MTU}",
            reason="LINK_SPEC_INVALID",
        )
    if len(spec.host_name) != _NAME_LENGTH or not spec.host_name.startswith(ENDPOINT_PREFIX):
        raise InvalidArgument(
            f"host_name {spec.host_name!r}; expected {ENDPOINT_PREFIX} and 12 hex digits",
            reason="LINK_SPEC_INVALID",
        )


def _check(spec: LinkSpec) -> None:
    _check_device(spec)
    for name, address, router in (("", spec.address, spec.router), ("6", spec.address6, spec.router6)):
        if (address is None) != (router is None):
            raise InvalidArgument(
                f"address{name} {address} and router{name} {router}; expected both or neither",
                reason="LINK_SPEC_INVALID",
            )
    if spec.address is None and spec.address6 is None:
        raise InvalidArgument("the link has no address; expected one or two", reason="LINK_SPEC_INVALID")
    if spec.address6 is not None and spec.route_mtu < IPV6_MIN_MTU:
        raise InvalidArgument(
            f"route mtu {spec.route_mtu} with an IPv6 address; expected at least {IPV6_MIN_MTU}",
            reason="LINK_SPEC_INVALID",
        )


# -- looking


def _find(route_socket: rt.RouteSocket, name: str) -> rt.LinkInfo | None:
    try:
        return rt.links(route_socket.request([rt.get_link(name)])[0])[0]
    except rt.NetlinkError as exc:
        if exc.errno == errno.ENODEV:
            return None
        raise


def _held(pod: rt.RouteSocket) -> list[tuple[int, str]]:
    return [each for family in _FAMILIES for each in rt.addresses(*pod.request([rt.dump_addresses(family)]))]


def _routes(pod: rt.RouteSocket) -> list[rt.RouteInfo]:
    answers = [pod.request([rt.dump_routes(family)])[0] for family in _FAMILIES]
    return [route for answer in answers for route in rt.routes(answer)]


def _device_problems(device: rt.LinkInfo, spec: LinkSpec, mac: str) -> list[str]:
    problems = []
    # Of whichever kind was asked for when it was made.
    if device.kind not in _KINDS:
        expected = " or ".join(_KINDS)
        problems.append(f"{device.name} is a {device.kind or 'device of no kind'}; expected {expected}")
    if not device.up:
        problems.append(f"{device.name} is down")
    if device.mtu != spec.mtu:
        problems.append(f"{device.name} has mtu {device.mtu}; expected {spec.mtu}")
    if device.mac != mac:
        problems.append(f"{device.name} has the MAC address {device.mac}; expected {mac}")
    return problems


def _route_problems(
    routes: list[rt.RouteInfo], ifindex: int, spec: LinkSpec, default_routes: tuple[int, ...]
) -> list[str]:
    problems = []
    for address, gateway in spec.gateways:
        family = "default" if address.version == 4 else "IPv6 default"
        direct = (str(gateway), gateway.max_prefixlen, ifindex, "")
        if all((r.dst, r.prefix_len, r.oif, r.gateway) != direct for r in routes):
            problems.append(f"the pod has no route to {gateway} through {spec.ifname}")
        if address.version not in default_routes:
            continue
        found = [r for r in routes if r.prefix_len == 0 and (r.oif, r.gateway) == (ifindex, str(gateway))]
        if not found:
            problems.append(f"the pod has no {family} route via {gateway} through {spec.ifname}")
        elif all(r.mtu != spec.route_mtu for r in found):
            problems.append(f"the pod's {family} route has mtu {found[0].mtu}; expected {spec.route_mtu}")
    return problems


def _further_problems(
    pod: rt.RouteSocket, ifindex: int, spec: LinkSpec, default_routes: tuple[int, ...]
) -> list[str]:
    return [
        problem
        for address, router in spec.gateways
        if address.version not in default_routes
        for problem in source_route_problems(pod, ifindex, str(address), str(router), spec.route_mtu)
    ]


def _prefix(address: IPv4Address | IPv6Address) -> str:
    return f"{address}/{address.max_prefixlen}"


# -- refusals


def _refused(exc: OSError, spec: LinkSpec) -> FimbriaError:
    operation = exc.operation if isinstance(exc, rt.NetlinkError) else ""
    if exc.errno == errno.EEXIST and operation.startswith("create"):
        return AlreadyExists(
            f"CNI_IFNAME {spec.ifname}: the pod already has an interface of that name",
            reason="INTERFACE_NAME_TAKEN",
            metadata={"ifname": spec.ifname},
        )
    if exc.errno == errno.EEXIST:
        return FailedPrecondition(
            f"the pod already has what its link needs: {exc}",
            reason="ROUTE_TAKEN",
            metadata={"ifname": spec.ifname},
        )
    return kernel_error(exc, spec.host_name)
