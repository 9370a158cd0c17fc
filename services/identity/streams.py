"""What watches send: encoded once for all watchers.

A message of a watch is the concatenation of its parts, as protobuf has it: events, one after the other, and a
revision. So each event of a feed is encoded once, however many watchers it goes to and whatever batches they
are at; and a snapshot is read once for all who wait for one, into large messages, and nothing else of it is
held in memory.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from services.chassis.feed import Feed, FeedEvent

# Events of one message of a snapshot: cheap, and far below any limit on messages.
SNAPSHOT_EVENTS = 2000
# Encoded events that are kept for the other watchers: a burst, and some MiB at most.
ENCODED_EVENTS = 4096

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state at a revision, as messages of a watch that are ready to be sent."""

    messages: tuple[bytes, ...]
    revision: int


class Shared(Generic[T]):
    """One result for all who ask while the one before is still being made.

    What is given out was begun after it was asked for, so that who has written something finds it there.
    """

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._running: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """The next result. Raises what making it raises, to all who share it."""
        if self._next is None:
            context = contextvars.copy_context()
            self._next = asyncio.create_task(self._after(self._running), context=context)
        return await asyncio.shield(self._next)

    async def _after(self, before: asyncio.Task[T] | None) -> T:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        return await self._make()


class WatchStream:
    """A feed's watch as encoded messages: `event` and `end` give the parts of one."""

    def __init__(
        self,
        feed: Feed,
        snapshot: Callable[[], Awaitable[Snapshot]],
        event: Callable[[FeedEvent], Message],
        end: Callable[[int, bool], Message],
    ) -> None:
        self._feed = feed
        self._snapshot = Shared(snapshot)
        self._event = event
        self._end = end
        self._encoded: dict[int, bytes] = {}

    async def watch(self, from_revision: int) -> AsyncIterator[bytes]:
        """The messages after `from_revision`; from 0 the present state first."""
        revision = from_revision
        if revision == 0:
            snapshot = await self._snapshot.get()
            revision = snapshot.revision
            for message in snapshot.messages:
                yield message
            del snapshot
            yield self._end(revision, True).SerializeToString()
        async for batch in self._feed.watch(revision, announce=from_revision > 0):
            end = self._end(batch.revision, False).SerializeToString()
            yield b"".join((*map(self._encode, batch.events), end))

    def _encode(self, event: FeedEvent) -> bytes:
        known = self._encoded.get(event.revision)
        if known is None:
            if len(self._encoded) >= ENCODED_EVENTS:
                del self._encoded[next(iter(self._encoded))]
            known = self._encoded[event.revision] = self._event(event).SerializeToString()
        return known


async def encode_pages(
    pages: AsyncIterator[Sequence[T]], message: Callable[[Sequence[T]], Message]
) -> list[bytes]:
    """A message for each page, encoded; others get their turn in between."""
    encoded = []
    async for page in pages:
        encoded.append(message(page).SerializeToString())
        await asyncio.sleep(0)
    return encoded


def serve_encoded(add_to_server: Callable[..., None], methods: Sequence[str]) -> Callable[..., None]:
    """`add_to_server`, generated from a proto, for a servicer whose `methods` give encoded messages."""

    def add(servicer: object, server: grpc.aio.Server) -> None:
        add_to_server(servicer, _Registration(server, methods))

    return add


class _Registration:
    """A server as far as generated code registers handlers with it."""

    def __init__(self, server: grpc.aio.Server, methods: Sequence[str]) -> None:
        self._server = server
        self._methods = methods

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Left to the other call, which has the handlers by name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Registers all; those of `methods` with a serializer that leaves bytes as they are."""
        changed = {
            name: handler._replace(response_serializer=bytes) if name in self._methods else handler
            for name, handler in handlers.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, changed),))
        self._server.add_registered_method_handlers(service, changed)
