"""The node's routes that are Fimbria's: known by their protocol number, whatever device they leave by."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, TypeAlias

from pyroute2.netlink.exceptions import NetlinkError

from services.chassis.errors import FailedPrecondition, FimbriaError, Internal, PermissionDenied
from services.loader.netlink.links import ENDPOINT_PREFIX

# Not one of /etc/iproute2/rt_protos: what carries it is Fimbria's to change and to delete.
ROUTE_PROTOCOL = 211

MAIN_TABLE = 254
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_RTAX_MTU = 2
# What the kernel says of a gateway that no directly connected network has.
_NOT_ON_LINK = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL)

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Route:
    """A route out of the device ``oif``; ``mtu`` 0 is the device's, ``source`` what the node itself sends
    from.
    """

    dst: Network
    oif: int
    gateway: Address | None = None
    mtu: int = 0
    source: Address | None = None


class GatewayUnreachable(Exception):
    """A gateway that is on no network which the route's device is connected to."""


def put_routes(ip: Any, wanted: Iterable[Route]) -> tuple[int, list[Route]]:
    """Makes the routes that are missing or different, in order; returns how many, and which have a gateway
    that is not on their device's link.

    Raises FailedPrecondition (ROUTE_CONFLICT) where somebody else's route is in the place of one,
    PermissionDenied, Internal.
    """
    own = {(route.dst, route.oif): route for route in own_routes(ip)}
    foreign = _foreign_routes(ip)
    written, unreachable = 0, []
    for route in wanted:
        if own.get((route.dst, route.oif)) == route:
            continue
        if route.dst in foreign:
            raise FailedPrecondition(
                f"the node already has a route to {route.dst}, which Fimbria needs for pods",
                reason="ROUTE_CONFLICT",
                metadata={"cidr": route.dst, "ifindex": foreign[route.dst]},
            )
        for old in [each for each in own.values() if each.dst == route.dst and each.oif != route.oif]:
            delete_route(ip, old)
        try:
            _put(ip, route)
            written += 1
        except GatewayUnreachable:
            unreachable.append(route)
    return written, unreachable


def own_routes(ip: Any) -> list[Route]:
    """Fimbria's routes in the main table, but for those to endpoints' devices."""
    found = []
    for family in _FAMILIES:
        for route in ip.get_routes(family=family, table=MAIN_TABLE):
            if route["proto"] != ROUTE_PROTOCOL or _to_endpoint(route):
                continue
            gateway, source = route.get("gateway"), route.get("prefsrc")
            found.append(
                Route(
                    _dst(route, family),
                    int(route.get("oif") or 0),
                    ip_address(gateway) if gateway else None,
                    int(route.get(("metrics", "mtu")) or 0),
                    ip_address(source) if source else None,
                )
            )
    return found


def delete_route(ip: Any, route: Route) -> None:
    """Deletes one of Fimbria's routes; one that has just gone is not missed."""
    try:
        ip.route("del", dst=str(route.dst), oif=route.oif, proto=ROUTE_PROTOCOL)
    except NetlinkError as exc:
        if exc.code != errno.ESRCH:
            raise _refused(exc, route) from exc


def _put(ip: Any, route: Route) -> None:
    request: dict[str, Any] = {"dst": str(route.dst), "oif": route.oif, "proto": ROUTE_PROTOCOL}
    if route.dst.version == 4:
        request["scope"] = _SCOPE_UNIVERSE if route.gateway else _SCOPE_LINK
    if route.source:
        request["prefsrc"] = str(route.source)
    if route.gateway:
        request["gateway"] = str(route.gateway)
    if route.mtu:
        request["metrics"] = {"mtu": route.mtu}
        if route.dst.version == 6:
            # What is forwarded is held to the MTU of an IPv6 route only if that is locked.
            request["metrics"]["lock"] = 1 << _RTAX_MTU
    try:
        ip.route("replace", **request)
    except NetlinkError as exc:
        if route.gateway and exc.code in _NOT_ON_LINK:
            raise GatewayUnreachable from exc
        raise _refused(exc, route) from exc


def _foreign_routes(ip: Any) -> dict[Network, int]:
    """Routes that are not Fimbria's, and the device each leaves by."""
    return {
        _dst(route, family): int(route.get("oif") or 0)
        for family in _FAMILIES
        for route in ip.get_routes(family=family, table=MAIN_TABLE)
        if route["proto"] != ROUTE_PROTOCOL
    }


def _dst(route: Any, family: int) -> Network:
    nothing = "0.0.0.0" if family == socket.AF_INET else "::"
    return ip_network(f"{route.get('dst') or nothing}/{route['dst_len']}")


def _to_endpoint(route: Any) -> bool:
    try:
        return socket.if_indextoname(int(route.get("oif") or 0)).startswith(ENDPOINT_PREFIX)
    except OSError:
        return False


def _refused(exc: NetlinkError, route: Route) -> FimbriaError:
    metadata = {"cidr": route.dst, "errno": errno.errorcode.get(exc.code, str(exc.code))}
    if exc.code in (errno.EPERM, errno.EACCES):
        return PermissionDenied(
            f"route to {route.dst}: {exc}; the loader needs CAP_NET_ADMIN",
            reason="CAPABILITY_MISSING",
            metadata=metadata,
        )
    return Internal(
        f"the kernel refused the route to {route.dst}: {exc}", reason="KERNEL_REFUSED", metadata=metadata
    )
