"""The cluster's nodes: routes to their pods, and what their own addresses mean here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable
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


def _present(*addresses: str) -> list[str]:
    return [address for address in addresses if address]


class NodesSync:
    """Follows IPAM's nodes."""

    def __init__(
        self,
        *,
        own: Node,
        open_stream: Callable[[int], AsyncIterable[pb.WatchNodesResponse]],
        links: NodeLinks,
        ipcache: IpcacheSync,
        target: str = "",
        tunnel: bool = True,
    ) -> None:
        self._own = own
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

    def _begin(self) -> None:
        self._named = set()

    def _take(self, message: pb.WatchNodesResponse) -> None:
        for event in message.events:
            name = event.node.name
            if self._named is not None:
                self._named.add(name)
            if name == self._own.name:
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
            self._others = {name: node for name, node in self._others.items() if name in self._named}
            self._named = None
        self._complete = True
        self._changed.set()

    async def _realize(self) -> None:
        backoff = Backoff(first=0.2)
        while True:
            await self._changed.wait()
            self._changed.clear()
            revision = self._received
            others = list(self._others.values())
            # The ipcache first: a route without it would send packets to an unknown place.
            meanings = node_meanings(self._own, others, tunnel=self._tunnel)
            self._ipcache.set_nodes(meanings, complete=True)
            try:
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
