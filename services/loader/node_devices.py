"""The node's own devices under a running loader: made again when they go, followed when they become others.

The programs know some of them by their interface index. A device that was made anew has another one, so the
programs are loaded again with it and every device of the node moves to them.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Hashable

from services.chassis.errors import FimbriaError
from services.chassis.logs import get_logger
from services.loader.interfaces import DatapathError
from services.loader.netlink import rtnetlink as rt
from services.loader.netlink.links import ENDPOINT_PREFIX
from services.loader.streams.backoff import Backoff

_log = get_logger(__name__)


class NodeDeviceKeeper:
    """``look`` returns something that changes when the node's devices do; ``repair`` makes or corrects them
    and brings the datapath along. ``problem`` says what is wrong for now, or is empty.
    """

    def __init__(self, look: Callable[[], Hashable], repair: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._repair = repair
        self._seen: Hashable = None
        self._asked = asyncio.Event()
        self._forced = False
        self.problem = ""

    def ask(self, *, force: bool = False) -> None:
        """Something may have changed; with ``force`` the devices are repaired whatever they look like."""
        self._forced = self._forced or force
        self._asked.set()

    async def run(self) -> None:
        """Until cancelled."""
        backoff = Backoff(first=0.2, most=30.0)
        try:
            self._seen = await asyncio.to_thread(self._look)
        except OSError as problem:
            _log.warning("node.devices_unknown", error=str(problem))
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self._once()
            except (FimbriaError, DatapathError, OSError) as problem:
                self._tell(f"the node's devices cannot be repaired: {problem}")
                self._forced = True
                # Again when something happens, and in a while without that.
                delay = backoff.next()
                asyncio.get_running_loop().call_later(delay, self._asked.set)
            else:
                self._tell("")
                backoff.reset()

    async def _once(self) -> None:
        seen = await asyncio.to_thread(self._look)
        if seen == self._seen and not self._forced:
            return
        self._forced = False
        await self._repair()
        self._seen = await asyncio.to_thread(self._look)
        # What was heard meanwhile may have been the repair itself, or one more device that went: the next
        # round, in which nobody changes anything, is the last.
        self._forced = self._asked.is_set()

    def _tell(self, problem: str) -> None:
        if problem and problem != self.problem:
            _log.error("node.devices_broken", error=problem)
        elif self.problem and not problem:
            _log.info("node.devices_repaired")
        self.problem = problem


def appearance() -> Hashable:
    """All devices but the endpoints', and all their addresses. Raises OSError."""
    with rt.RouteSocket() as netlink:
        devices, *addresses = netlink.request(
            [rt.dump_links(), rt.dump_addresses(socket.AF_INET), rt.dump_addresses(socket.AF_INET6)]
        )
    links = {
        (link.ifindex, link.name, link.up, link.mtu, link.mac)
        for link in rt.links(devices)
        if not link.name.startswith(ENDPOINT_PREFIX)
    }
    known = {ifindex for ifindex, *_ in links}
    held = {each for answer in addresses for each in rt.addresses(answer) if each[0] in known}
    return frozenset(links), frozenset(held)
