"""What becomes of endpoints whose devices change under a running loader.

A device that is gone, with its pod's namespace most likely, takes its endpoint along: rows, addresses,
record, and what the cluster was told. A device that has lost its programs gets them back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from services.chassis.errors import FimbriaError
from services.chassis.logs import get_logger
from services.loader.endpoints.endpoint import Phase
from services.loader.endpoints.manager import EndpointManager
from services.loader.endpoints.regeneration import Cause, Level
from services.loader.endpoints.registry import EndpointRegistry
from services.loader.interfaces import DatapathError, EndpointKernel, NodeLinks
from services.loader.netlink.monitor import DeviceMonitor, News

# A namespace that goes takes devices one after the other; they are looked at together.
_GATHER_SECONDS: Final = 0.01

_log = get_logger(__name__)


class DeviceWatch:
    """Follows the node's devices. ``node_changed`` is called when the node's own may have changed."""

    def __init__(
        self,
        *,
        registry: EndpointRegistry,
        manager: EndpointManager,
        kernel: EndpointKernel,
        links: NodeLinks,
        node_devices: Callable[[], frozenset[int]],
        node_changed: Callable[[], None],
        open_monitor: Callable[[], DeviceMonitor] = DeviceMonitor,
    ) -> None:
        self._registry = registry
        self._manager = manager
        self._kernel = kernel
        self._links = links
        self._node_devices = node_devices
        self._node_changed = node_changed
        self._open_monitor = open_monitor

    async def run(self) -> None:
        """Until cancelled."""
        monitor = self._open_monitor()
        try:
            with monitor.listening():
                # What happened before anybody listened.
                await self._safely(self.look())
                while True:
                    news = await monitor.next()
                    await self._safely(self._take(news))
        finally:
            monitor.close()

    async def look(self) -> None:
        """Compares the endpoints with the devices that there are. Raises FimbriaError."""
        # Before the devices are listed: whatever is ready here had its device by then.
        records = [each.record for each in self._registry if each.record.phase is Phase.READY]
        devices = await self._links.endpoint_links()
        for record in records:
            if devices.get(record.spec.host_device) != record.ifindex:
                await self._safely(self._manager.vanished(record.spec.owner, record.ifindex))

    async def _take(self, news: News) -> None:
        if news.all:
            _log.warning("devices.messages_lost")
        node = self._node_devices()
        if news.all or news.addresses or node & (news.gone | news.changed | news.unhooked):
            self._node_changed()
        ours = {each.record.ifindex for each in self._registry if each.record.phase is Phase.READY}
        if news.all or ours & news.gone:
            await asyncio.sleep(_GATHER_SECONDS)
            await self.look()
        if news.all or ours & news.unhooked:
            await self.rehook()

    async def rehook(self) -> None:
        """Gives endpoints whose devices do not run the programs in force those programs. Raises
        DatapathError.
        """
        unhooked = await asyncio.to_thread(self._kernel.unhooked)
        for endpoint in self._registry:
            record = endpoint.record
            if record.phase is Phase.READY and record.ifindex in unhooked:
                _log.error("endpoint.programs_missing", endpoint=record.id, device=record.spec.host_device)
                self._manager.regenerator.submit(record.id, Level.RELOAD, Cause.DEVICE)

    async def _safely(self, work: Awaitable[None]) -> None:
        try:
            await work
        except (FimbriaError, DatapathError, OSError) as problem:
            # The next message or the periodic refresh looks again.
            _log.error("devices.not_looked_at", error=str(problem))
