"""The cluster's nodes: routes to their pods, and what their own addresses mean here.

This node is one of them: IPAM gives it another pod CIDR when it runs out, and takes back those that are
empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from fimbria.ipam.v1 import ipam_pb2 as pb
from fimbria.types.v1 import types_pb2

from services.chassis.errors import FimbriaError
from services.chassis.logs import get_logger
from services.loader.endpoints.endpoint import host_prefix
from services.loader.interfaces import Node, NodeLinks
from services.loader.ipcache.sync import IpcacheSync
from services.loader.ipcache.table import Meaning
from services.loader.streams.backoff import Backoff
from services.loader.streams.watch import WatchState, follow
from services.loader.streams.watermark import Watermark

HOST: Final = 1
REMOTE_NODE: Final = 6
# How long an ADD waits for the routes of a pod CIDR that has just come.
_COVER_SECONDS: Final = 2.0

__all__ = ["HOST", "REMOTE_NODE", "Node", "NodesSync", "node_meanings", "node_of"]

_log = get_logger(__name__)


def node_of(message: pb.Node) -> Node:
    """The domain type of a node message."""
    return Node(
        message.name,
        message.ipv4,
        tuple(message.pod_cidrs),
        message.router_ipv4,
        message.ipv6,
        message.router_ipv6,
    )


def node_meanings(own: Node, others: Iterable[Node], *, tunnel: bool = True) -> dict[str, Meaning]:
    """What the nodes' addresses mean on ``own``: its own are the host, the others' remote nodes, reached
    directly on the underlay and through the ``tunnel``, if there is one, at their router addresses.
    """
    meanings: dict[str, Meaning] = {}
    for node in others:
        for address in _present(node.router_ipv4, node.router_ipv6):
            meanings[host_prefix(address)] = Meaning(REMOTE_NODE, node.ipv4 if tunnel else "")
        for address in _present(node.ipv4, node.ipv6):
            meanings[host_prefix(address)] = Meaning(REMOTE_NODE)
    # Last, so that no other node can take an address of this one over.
    for address in _present(own.router_ipv4, own.router_ipv6, own.ipv4, own.ipv6):
        meanings[host_prefix(address)] = Meaning(HOST)
    return meanings


def _covers(node: Node, addresses: Iterable[IPv4Address | IPv6Address]) -> bool:
    cidrs = [ip_network(cidr) for cidr in node.pod_cidrs]
    return all(any(address in cidr for cidr in cidrs) for address in addresses)


def _present(*addresses: str) -> list[str]:
    return [address for address in addresses if address]


class NodesSync:
    """Follows IPAM's nodes. ``own`` is this one as it registered, and routed as that. ``get_own`` asks IPAM
    for it as it is now; ``own_changed`` is told when it has become another. ``problem`` says what is wrong
    with it.
    """

    def __init__(
        self,
        *,
        own: Node,
        open_stream: Callable[[int], AsyncIterable[pb.WatchNodesResponse]],
        links: NodeLinks,
        ipcache: IpcacheSync,
        target: str = "",
        tunnel: bool = True,
        get_own: Callable[[], Awaitable[pb.Node]] | None = None,
        own_changed: Callable[[Node], None] = lambda own: None,
    ) -> None:
        self._own = own
        self._routed = own
        self._own_revision = 0
        self._get_own = get_own
        self._own_changed = own_changed
        self._own_routes = Watermark()
        self._tunnel = tunnel
        self._open_stream = open_stream
        self._links = links
        self._ipcache = ipcache
        self._target = target
        self._others: dict[str, Node] = {}
        self._named: set[str] | None = None
        self._received = 0
        self._complete = False
        self._changed = asyncio.Event()
        self.state = WatchState("nodes")
        self.applied = Watermark()
        self.problem = ""
        ipcache.set_nodes(node_meanings(own, (), tunnel=tunnel), complete=False)

    async def run(self) -> None:
        """Follows the nodes and keeps routes and ipcache as they say, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(
                follow(
                    self._open_stream,
                    begin=self._begin,
                    take=self._take,
                    end=self._end,
                    state=self.state,
                    target=self._target,
                )
            )
            group.create_task(self._realize())

    def again(self) -> None:
        """Makes the routes again: devices that they lead to have come anew."""
        if self._complete:
            self._changed.set()

    async def cover(self, addresses: Iterable[str]) -> None:
        """Returns when the node routes these addresses as its own, so that a pod may have them: the first of
        a new pod CIDR may come before the watch has told of that. Never raises, and never waits for long.
        """
        wanted = [ip_address(address) for address in addresses]
        if _covers(self._routed, wanted):
            return
        try:
            if self._get_own is not None and not _covers(self._own, wanted):
                self.follow_own(await self._get_own())
            async with asyncio.timeout(_COVER_SECONDS):
                while not _covers(self._routed, wanted):
                    await self._own_routes.wait(self._own_routes.value + 1)
        except (FimbriaError, TimeoutError) as problem:
            shown = ", ".join(map(str, wanted))
            _log.warning(
                "node.address_not_routed", addresses=shown, error=str(problem) or "no answer in time"
            )

    def follow_own(self, message: pb.Node) -> None:
        """Takes over what IPAM says of this node, unless something newer is known already."""
        if message.revision <= self._own_revision:
            return
        self._own_revision = message.revision
        self.adopt(node_of(message))

    def adopt(self, own: Node) -> None:
        """This node has these pod CIDRs and routers now."""
        if own.ipv4 != self._own.ipv4:
            # A loader with this node's name and another address: one of them is wrong, nobody knows which.
            self.problem = f"a node of this name has registered with the address {own.ipv4}"
            _log.error("node.registered_elsewhere", ipv4=own.ipv4, own=self._own.ipv4)
            return
        self.problem = ""
        own = replace(own, ipv6=self._own.ipv6)
        if own == self._own:
            return
        _log.info("node.pod_cidrs_changed", before=list(self._own.pod_cidrs), now=list(own.pod_cidrs))
        self._own = own
        self._own_changed(own)
        self._changed.set()

    def _begin(self) -> None:
        self._named = set()
        # A store that has started over counts from the beginning.
        self._own_revision = 0

    def _take(self, message: pb.WatchNodesResponse) -> None:
        for event in message.events:
            name = event.node.name
            if self._named is not None:
                self._named.add(name)
            if name == self._own.name:
                if event.type == types_pb2.CHANGE_TYPE_DELETE:
                    self._forgotten()
                else:
                    self.follow_own(event.node)
                continue
            if event.type == types_pb2.CHANGE_TYPE_DELETE:
                self._others.pop(name, None)
            else:
                self._others[name] = node_of(event.node)
        self._received = message.revision
        if self._complete:
            self._changed.set()

    def _end(self) -> None:
        if self._named is not None:
            if self._own.name not in self._named:
                self._forgotten()
            self._others = {name: node for name, node in self._others.items() if name in self._named}
            self._named = None
        self._complete = True
        self._changed.set()

    def _forgotten(self) -> None:
        # Its addresses may be others' soon, and its pods run on: what to do about that is for people to say.
        self.problem = (
            "ipam does not know this node any more: its addresses may be given to others; remove its pods "
            "and restart the loader to register it anew"
        )
        _log.error("node.forgotten", node=self._own.name)

    async def _realize(self) -> None:
        backoff = Backoff(first=0.2)
        while True:
            await self._changed.wait()
            self._changed.clear()
            revision, complete, own = self._received, self._complete, self._own
            others = list(self._others.values())
            # The ipcache first: a route without it would send packets to an unknown place.
            meanings = node_meanings(own, others if complete else (), tunnel=self._tunnel)
            self._ipcache.set_nodes(meanings, complete=complete)
            try:
                if own != self._routed:
                    await self._links.set_own(own)
                    self._routed = own
                    self._own_routes.set(self._own_routes.value + 1)
                if not complete:
                    # Who has what the node no longer has is not known yet.
                    continue
                await self._links.set_remote_nodes(others)
            except (FimbriaError, OSError) as problem:
                self.state.error = str(problem)
                _log.error("nodes.routes_failed", error=str(problem))
                await asyncio.sleep(backoff.next())
                self._changed.set()
                continue
            backoff.reset()
            self.state.in_force(revision)
            self.applied.set(revision)
