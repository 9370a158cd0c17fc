"""Endpoint routes: one route per pod address to the pod's own device, with who is at its other end.

With them the node's stack, not the datapath, takes a packet to its endpoint's device, where the datapath's
egress hook judges it. Nobody has to answer the node's questions for a pod's MAC address: it is written down.
What goes with its device needs no removing: the kernel takes routes and neighbours along.

Synchronous; works in the namespace of the calling thread.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from services.chassis.errors import FailedPrecondition
from services.loader.netlink import rtnetlink as rt
from services.loader.netlink.links import is_endpoint_device
from services.loader.netlink.node import ROUTE_PROTOCOL
from services.loader.netlink.refusals import kernel_error

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
# What the kernel is sent at once must fit into a socket buffer, and so must its answers.
_BATCH = 64


@dataclass(frozen=True, slots=True)
class EndpointRoutes:
    """The routes to one endpoint: (address, source) pairs of either family or both.

    ``source`` is what the node itself sends from, its router address of that family; it may be empty.
    """

    host_name: str
    pod_mac: str
    addresses: tuple[tuple[str, str], ...]


def add_endpoint_routes(wanted: EndpointRoutes) -> None:
    """Makes an endpoint's routes and neighbour entries, or corrects them; its device must be up.

    Raises FailedPrecondition (LINK_GONE) when there is no such device, else as
    :func:`~services.loader.netlink.refusals.kernel_error`.
    """
    with rt.RouteSocket() as node:
        try:
            (device,) = rt.links(node.request([rt.get_link(wanted.host_name)])[0])
            node.request(_requests(wanted, device.ifindex))
        except OSError as exc:
            if exc.errno == errno.ENODEV:
                raise FailedPrecondition(
                    f"the device {wanted.host_name} is gone",
                    reason="LINK_GONE",
                    metadata={"device": wanted.host_name},
                ) from exc
            raise kernel_error(exc, wanted.host_name) from exc


def sync_endpoint_routes(wanted: Iterable[EndpointRoutes]) -> tuple[int, int]:
    """Makes exactly these, whatever an earlier process left; returns how many were missing and how many
    removed.

    An endpoint without a device is passed over. Raises as :func:`add_endpoint_routes`.
    """
    with rt.RouteSocket() as node:
        try:
            return _sync(node, list(wanted))
        except OSError as exc:
            raise kernel_error(exc, "endpoint routes") from exc


def list_endpoint_routes() -> list[tuple[int, str]]:
    """(ifindex, address) of every endpoint route. Raises as :func:`add_endpoint_routes`."""
    with rt.RouteSocket() as node:
        try:
            devices = {
                link.ifindex
                for link in rt.links(*node.request([rt.dump_links()]))
                if is_endpoint_device(link)
            }
            return sorted(_present(node, devices)[0])
        except OSError as exc:
            raise kernel_error(exc, "endpoint routes") from exc


def delete_endpoint_route(ifindex: int, address: str) -> None:
    """Removes a route and its neighbour entry; what is not there is fine. Raises as
    :func:`add_endpoint_routes`.
    """
    with rt.RouteSocket() as node:
        try:
            node.request(
                [
                    rt.delete_endpoint_route(ifindex, address, protocol=ROUTE_PROTOCOL),
                    rt.delete_neighbour(ifindex, address),
                ]
            )
        except OSError as exc:
            raise kernel_error(exc, "endpoint routes") from exc


def endpoint_route_problems(wanted: EndpointRoutes) -> list[str]:
    """What of an endpoint's routes is missing or different, in words. Raises as
    :func:`add_endpoint_routes`.
    """
    with rt.RouteSocket() as node:
        try:
            devices = {link.name: link.ifindex for link in rt.links(*node.request([rt.dump_links()]))}
            routes, neighbours = _present(node, set(devices.values()))
        except OSError as exc:
            raise kernel_error(exc, wanted.host_name) from exc
    ifindex = devices.get(wanted.host_name, 0)
    problems = []
    for address, _ in wanted.addresses:
        if (ifindex, address) not in routes:
            problems.append(f"the node has no route to {address} through {wanted.host_name}")
        mac = neighbours.get((ifindex, address))
        if mac != wanted.pod_mac:
            problems.append(f"the node has {address} at {mac or 'no MAC address'}; expected {wanted.pod_mac}")
    return problems


def _sync(node: rt.RouteSocket, wanted: list[EndpointRoutes]) -> tuple[int, int]:
    devices = {
        link.name: link for link in rt.links(*node.request([rt.dump_links()])) if is_endpoint_device(link)
    }
    routes, neighbours = _present(node, {link.ifindex for link in devices.values()})
    kept: dict[tuple[int, str], str] = {}
    requests: list[rt.Message] = []
    for each in wanted:
        device = devices.get(each.host_name)
        if device is None or not device.up:
            continue
        missing = [
            pair
            for pair in each.addresses
            if (device.ifindex, pair[0]) not in routes
            or neighbours.get((device.ifindex, pair[0])) != each.pod_mac
        ]
        kept |= {(device.ifindex, address): each.pod_mac for address, _ in each.addresses}
        requests += _requests(EndpointRoutes(each.host_name, each.pod_mac, tuple(missing)), device.ifindex)
    stale_routes, stale_neighbours = routes - kept.keys(), neighbours.keys() - kept.keys()
    requests += [rt.delete_endpoint_route(*found, protocol=ROUTE_PROTOCOL) for found in stale_routes]
    requests += [rt.delete_neighbour(*found) for found in stale_neighbours]
    for at in range(0, len(requests), _BATCH):
        node.request(requests[at : at + _BATCH])
    return (len(requests) - len(stale_routes) - len(stale_neighbours)) // 2, len(stale_routes)


def _present(
    node: rt.RouteSocket, devices: set[int]
) -> tuple[set[tuple[int, str]], dict[tuple[int, str], str]]:
    """(ifindex, address) of some devices' routes, and the MAC addresses of their permanent neighbours."""
    routes: set[tuple[int, str]] = set()
    neighbours: dict[tuple[int, str], str] = {}
    for family in _FAMILIES:
        for route in rt.routes(*node.request([rt.dump_routes(family)])):
            whole = route.prefix_len == (32 if family == socket.AF_INET else 128)
            if whole and route.protocol == ROUTE_PROTOCOL and route.oif in devices:
                routes.add((route.oif, route.dst))
        for found in rt.neighbours(*node.request([rt.dump_neighbours(family)])):
            if found.ifindex in devices:
                neighbours[found.ifindex, found.address] = found.mac
    return routes, neighbours


def _requests(wanted: EndpointRoutes, ifindex: int) -> list[rt.Message]:
    return [
        message
        for address, source in wanted.addresses
        for message in (
            # First: a packet that finds the route must not have to ask.
            rt.put_neighbour(ifindex, address, wanted.pod_mac),
            rt.put_endpoint_route(ifindex, address, source, ROUTE_PROTOCOL),
        )
    ]
