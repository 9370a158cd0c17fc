"""The node's devices over netlink, done by threads of their own so that the event loop never waits for
RTNL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Literal, TypeVar

from services.chassis.errors import InvalidArgument
from services.loader.endpoints.endpoint import EndpointRecord
from services.loader.interfaces import EndpointLink, Node
from services.loader.netlink import links
from services.loader.netlink.endpoint_routes import (
    EndpointRoutes,
    add_endpoint_routes,
    delete_endpoint_route,
    endpoint_route_problems,
    list_endpoint_routes,
    sync_endpoint_routes,
)
from services.loader.netlink.links import LinkSpec
from services.loader.netlink.netkit import DeviceKind, device_kind
from services.loader.netlink.node import NodeDevices, NodeNetwork, NodeNetworkSettings, RemoteNode

T = TypeVar("T")


class NetlinkDevices:
    """The :class:`~services.loader.interfaces.NodeLinks` of a real node. With ``endpoint_routes`` the node
    has routes to each endpoint. ``endpoint_device`` is the kind of pair that new endpoints get.
    """

    def __init__(
        self,
        settings: NodeNetworkSettings,
        *,
        endpoint_routes: bool = False,
        endpoint_device: Literal["veth", "netkit", "auto"] = "veth",
    ) -> None:
        self._network = NodeNetwork(settings)
        self._routers = _routers(settings.router, settings.router6)
        self._endpoint_routes = endpoint_routes
        self._endpoint_device = endpoint_device
        self._kind: DeviceKind = "veth"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="netlink")
        # The kernel takes 15 ms to be sure that nobody uses a device that is removed; nobody else waits for
        # that.
        self._removals = ThreadPoolExecutor(max_workers=1, thread_name_prefix="netlink-removals")
        self._mtu = 0
        self._route_mtu = 0
        self._prepared: dict[str, links.PreparedLink] = {}

    async def ensure(self) -> NodeDevices:
        """Makes or repairs the node's own devices. Raises FimbriaError."""
        devices = await self._call(self._network.ensure)
        self._mtu, self._route_mtu = devices.mtu, devices.route_mtu
        self._kind = await self._call(partial(device_kind, self._endpoint_device))
        return devices

    async def prepare_endpoint_link(self, record: EndpointRecord, netns_fd: int | None) -> None:
        """Makes the pair of devices; :meth:`create_endpoint_link` goes on with it."""
        if record.spec.mtu > self._mtu:
            raise InvalidArgument(
                f"network configuration: mtu: got {record.spec.mtu}; the node's is {self._mtu}",
                reason="MTU_TOO_LARGE",
                metadata={"field": "mtu", "most": str(self._mtu)},
            )
        spec = self._spec(record, netns_fd)
        self._prepared[spec.host_name] = await self._call(lambda: links.prepare_endpoint_link(spec))

    async def create_endpoint_link(self, record: EndpointRecord, netns_fd: int | None) -> EndpointLink:
        """Gives the prepared pair of devices its addresses and routes; the node's side stays down."""
        spec = self._spec(record, netns_fd)
        prepared = self._prepared.pop(spec.host_name)
        link = await self._call(lambda: links.create_endpoint_link(spec, prepared, up=False))
        return EndpointLink(link.ifindex, link.host_mac, link.pod_mac, link.mtu, link.default_routes)

    async def open_endpoint_link(self, record: EndpointRecord) -> None:
        """Brings the node's side up, and makes the node's routes to the endpoint if it is to have any."""

        def work() -> None:
            links.set_endpoint_link_up(record.spec.host_device)
            if self._endpoint_routes:
                # After it is up: the kernel takes no routes to a device that is down.
                add_endpoint_routes(self._routes(record))

        await self._call(work)

    async def delete_endpoint_link(self, device: str) -> None:
        """Removes the pair; one that is not there is fine."""
        self._prepared.pop(device, None)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._removals, links.delete_endpoint_link, device)

    async def check_endpoint_link(self, record: EndpointRecord, netns_fd: int | None) -> list[str]:
        """What is not as it was made, in words."""
        spec = self._spec(record, netns_fd)

        def work() -> list[str]:
            problems = links.check_endpoint_link(spec, record.default_routes)
            return problems + (endpoint_route_problems(self._routes(record)) if self._endpoint_routes else [])

        return await self._call(work)

    async def endpoint_links(self) -> Mapping[str, int]:
        """Name and interface index of every endpoint device on the node."""
        found = await self._call(links.list_endpoint_links)
        return {link.name: link.ifindex for link in found}

    async def sync_endpoint_routes(self, records: Sequence[EndpointRecord]) -> None:
        """Makes the routes to these endpoints, and no others; where endpoints have none, removes all."""
        wanted = [self._routes(record) for record in records] if self._endpoint_routes else []
        await self._call(lambda: sync_endpoint_routes(wanted))

    async def list_endpoint_routes(self) -> list[tuple[int, str]]:
        """Interface index and address of every route to an endpoint."""
        return await self._call(list_endpoint_routes)

    async def delete_endpoint_route(self, ifindex: int, address: str) -> None:
        """Removes a route to an endpoint; one that is not there is fine."""
        await self._call(lambda: delete_endpoint_route(ifindex, address))

    async def set_remote_nodes(self, nodes: Sequence[Node]) -> None:
        """Routes the pod CIDRs of these nodes, and of no others, as the routing mode has it."""
        remotes = [
            RemoteNode(
                node.name,
                IPv4Address(node.ipv4),
                IPv6Address(node.ipv6) if node.ipv6 else None,
                tuple(ip_network(cidr) for cidr in node.pod_cidrs),
            )
            for node in nodes
        ]
        await self._call(lambda: self._network.set_remote_nodes(remotes))

    async def set_own(self, own: Node) -> None:
        """These are the node's own pod CIDRs and routers from now on."""
        cidrs = tuple(ip_network(cidr) for cidr in own.pod_cidrs)
        router = IPv4Address(own.router_ipv4) if own.router_ipv4 else None
        router6 = IPv6Address(own.router_ipv6) if own.router_ipv6 else None
        self._routers = _routers(router, router6)
        await self._call(lambda: self._network.set_own(cidrs, router, router6))

    def close(self) -> None:
        """Ends the threads; what they are at is finished."""
        self._thread.shutdown(wait=False)
        self._removals.shutdown(wait=False)

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _spec(self, record: EndpointRecord, netns_fd: int | None) -> LinkSpec:
        if netns_fd is None:
            raise InvalidArgument(
                f"CNI_NETNS is missing or gone: {record.spec.netns!r}", reason="NETNS_INVALID"
            )
        return LinkSpec(
            host_name=record.spec.host_device,
            netns_fd=netns_fd,
            ifname=record.spec.ifname,
            address=IPv4Address(record.ipv4) if record.ipv4 else None,
            router=IPv4Address(record.router_ipv4) if record.router_ipv4 else None,
            mtu=record.spec.mtu or self._mtu,
            route_mtu=min(self._route_mtu, record.spec.mtu or self._route_mtu),
            pod_mac=record.spec.mac,
            default_route=record.spec.default_route,
            address6=IPv6Address(record.ipv6) if record.ipv6 else None,
            router6=IPv6Address(record.router_ipv6) if record.router_ipv6 else None,
            kind=self._kind,
        )

    def _routes(self, record: EndpointRecord) -> EndpointRoutes:
        # From the router that the node has now: the endpoint may know it by another that it had before.
        pairs = zip((record.ipv4, record.ipv6), self._routers, strict=True)
        return EndpointRoutes(
            record.spec.host_device, record.pod_mac, tuple(pair for pair in pairs if pair[0])
        )


def _routers(router: IPv4Address | None, router6: IPv6Address | None) -> tuple[str, str]:
    return (str(router) if router else "", str(router6) if router6 else "")
