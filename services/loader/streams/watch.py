"""A watch that resumes: how the feeds of the other services are followed.

A feed is asked for what came after the last revision that was taken; when the service no longer has that,
or has started over itself, it is asked for everything. The watch never ends; what is wrong with it is in
its state.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import grpc

from services.chassis.errors import OutOfRange, error_from_rpc
from services.chassis.logs import get_logger
from services.loader.streams.backoff import Backoff

_log = get_logger(__name__)


class FeedMessage(Protocol):
    """What the messages of all feeds have in common."""

    @property
    def revision(self) -> int: ...

    @property
    def snapshot_complete(self) -> bool: ...


@dataclass(slots=True)
class WatchState:
    """How a watch is: ``revision`` is what is in force here, ``error`` the last one since it was open.

    ``sync_time``: when something last came and was in force, in seconds since 1970, 0 when nothing has yet;
    the services say at least every ten seconds that there is nothing new. ``synchronized``: the first full
    state has been in force; ``ready`` is set from then on.
    """

    name: str
    connected: bool = False
    revision: int = 0
    error: str = ""
    sync_time: float = 0.0
    synchronized: bool = False
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    def opened(self) -> None:
        """The service has answered."""
        if not self.connected:
            _log.info("watch.opened", watch=self.name)
        self.connected = True
        self.error = ""

    def in_force(self, revision: int, *, complete: bool = True) -> None:
        """What came is in force up to a revision; it is ``complete`` from the end of the first snapshot
        on.
        """
        self.revision = revision
        self.sync_time = time.time()
        self.synchronized = self.synchronized or complete
        if self.synchronized:
            self.ready.set()

    def failed(self, error: str) -> None:
        """The stream broke, or did not open."""
        if self.connected or error != self.error:
            _log.warning("watch.failed", watch=self.name, error=error)
        self.connected = False
        self.error = error


M = TypeVar("M", bound=FeedMessage)


async def follow(
    open_stream: Callable[[int], AsyncIterable[M]],
    *,
    begin: Callable[[], None],
    take: Callable[[M], None],
    end: Callable[[], None],
    state: WatchState,
    target: str = "",
) -> None:
    """Follows a feed until cancelled.

    ``open_stream(revision)`` asks for what came after a revision, 0 for everything. Then ``begin`` is
    called before the first message of a snapshot, and ``end`` after the last; ``take`` with each message in
    between and after.
    """
    backoff = Backoff()
    revision, complete = 0, False
    while True:
        if revision == 0:
            begin()
            complete = False
        try:
            async for message in open_stream(revision):
                backoff.reset()
                state.opened()
                if 0 < message.revision < revision:
                    raise OutOfRange("the feed has started over", reason="REVISION_LOST")
                take(message)
                if message.snapshot_complete:
                    end()
                    complete = True
                if complete:
                    revision = message.revision
            problem = "the service ended the stream"
        except grpc.RpcError as error:
            found = error_from_rpc(error, target)
            problem = str(found)
            if isinstance(found, OutOfRange):
                revision = 0
        except OutOfRange as lost:
            problem, revision = str(lost), 0
        state.failed(problem)
        await asyncio.sleep(backoff.next())
