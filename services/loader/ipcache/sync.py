"""The cluster's ipcache in this node's kernel, in the order that keeps policy ahead of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from typing import Any, Final

from fimbria.identity.v1 import identity_pb2 as pb
from fimbria.types.v1 import types_pb2

from services.chassis import names
from services.chassis.logs import get_logger
from services.chassis.telemetry import remote_context, span
from services.loader.endpoints.endpoint import host_prefix
from services.loader.interfaces import DatapathError, IpcacheKernel
from services.loader.ipcache.table import Changes, FeedEntry, IpcacheTable, Meaning
from services.loader.measure_points import in_bpf_phase
from services.loader.streams.backoff import Backoff
from services.loader.streams.watch import WatchState, follow
from services.loader.streams.watermark import Watermark

# A change of a few entries has a cause that somebody may ask for; a snapshot has not.
_TRACED_EVENTS: Final = 16

_log = get_logger(__name__)


class IpcacheSync:
    """Keeps the kernel's ipcache. ``identity_revision`` tells how far the policy maps have come. Without
    ``tunnel`` other nodes' pods are reached as everything else is. ``started_over`` is told when the feed had
    to be read from the beginning again: its store may be another one.
    """

    def __init__(
        self,
        *,
        node: str,
        kernel: IpcacheKernel,
        open_stream: Callable[[int], AsyncIterable[pb.WatchIpCacheResponse]],
        identity_revision: Watermark,
        target: str = "",
        tunnel: bool = True,
        started_over: Callable[[], None] = lambda: None,
    ) -> None:
        self._started_over = started_over
        self._node = node
        self._tunnel = tunnel
        self._kernel = kernel
        self._open_stream = open_stream
        self._target = target
        self._table = IpcacheTable(kernel.ipcache())
        self._retry: asyncio.Task[None] | None = None
        self._complete = False
        # The feed has said something, if only that there is nothing new, since the kernel was written last.
        self._news = False
        self._nodes_complete = False
        self.state = WatchState("ipcache")
        self.applied = Watermark()
        identity_revision.listen(self._reach)
        self._table.reach(identity_revision.value)

    async def run(self) -> None:
        """Follows the feed until cancelled."""
        await follow(
            self._open_stream,
            begin=self._table.begin_snapshot,
            take=self._take,
            end=self._end,
            state=self.state,
            target=self._target,
        )

    async def close(self) -> None:
        """Ends what runs beside :meth:`run`."""
        if self._retry is not None:
            self._retry.cancel()

    def put_local(self, addresses: Iterable[str], identity: int, identity_revision: int) -> None:
        """An endpoint of this node has the addresses. They are in the kernel at once unless the policy maps
        do not know the identity yet.
        """
        for address in addresses:
            self._table.put_local(host_prefix(address), identity, identity_revision)
        self._flush()

    def remove_local(self, addresses: Iterable[str]) -> None:
        """The endpoint with the addresses is gone."""
        for address in addresses:
            self._table.remove_local(host_prefix(address))
        self._flush()

    def set_nodes(self, entries: Mapping[str, Meaning], *, complete: bool) -> None:
        """The addresses of nodes, by prefix; ``complete`` when they are all there are in the cluster."""
        self._table.set_host(entries)
        self._nodes_complete = self._nodes_complete or complete
        self._settle()
        self._flush()

    def prefix_identities(self) -> Mapping[str, int]:
        """The prefixes that policies name, with their numbers: at the start those that the kernel holds."""
        return self._table.prefix_identities()

    def change_prefixes(self, changes: Mapping[str, int | None]) -> None:
        """Policies name these prefixes by these numbers, or do so no longer. What else is said of a prefix
        comes first.
        """
        for prefix, number in changes.items():
            self._table.put_prefix(prefix, number)
        self._flush()

    def prefix_problem(self) -> str:
        """Why the kernel does not hold the prefixes of policies as they are; empty when it does."""
        if not self._table.prefixes_behind:
            return ""
        return self.state.error or "the ipcache is behind"

    def owner(self, address: str) -> str:
        """What an address belongs to ("shop/web"), as far as this node has been told; else empty."""
        return self._table.owner(host_prefix(address))

    def waiting(self, addresses: Iterable[str]) -> bool:
        """Whether the identity of one of the addresses waits for the policy maps."""
        waiting = self._table.waiting
        return any(host_prefix(address) in waiting for address in addresses)

    async def verify(self) -> int:
        """Compares the kernel's ipcache with what was written there, and writes what differs; returns how
        many entries did. Raises DatapathError.
        """
        before = dict(self._table.kernel())
        differing = await asyncio.to_thread(_differences, before, self._kernel.walk_ipcache)
        # What was written meanwhile is right.
        unchanged = {
            prefix: held
            for prefix, held in differing.items()
            if self._table.kernel().get(prefix) == before.get(prefix)
        }
        if unchanged:
            self._table.found(unchanged)
            self._flush()
        return len(unchanged)

    def _take(self, message: pb.WatchIpCacheResponse) -> None:
        for event in message.events:
            entry = event.entry
            if event.type == types_pb2.CHANGE_TYPE_DELETE:
                self._table.delete_feed(entry.prefix)
                continue
            here = entry.node == self._node
            tunnel = entry.tunnel_endpoint if self._tunnel and not here else ""
            self._table.put_feed(
                entry.prefix,
                FeedEntry(
                    Meaning(entry.identity, tunnel),
                    entry.identity_revision,
                    entry.revision,
                    entry.owner,
                    here,
                ),
            )
        self._table.received(message.revision)
        self._news = True
        trace = message.events[0].trace if len(message.events) in range(1, _TRACED_EVENTS) else None
        if trace is None or not trace.traceparent:
            self._flush()
            return
        attributes: dict[str, Any] = {names.MAP: "ipcache", names.NODE_NAME: self._node}
        parent = remote_context(trace.traceparent, trace.tracestate)
        with span(names.BPF_MAPS_SYNC, parent=parent, **attributes) as current:
            changes = self._flush()
            current.set_attribute(names.ADDS, len(changes.puts))
            current.set_attribute(names.DELETES, len(changes.deletes))

    def _end(self) -> None:
        self._table.end_snapshot()
        if self._complete:
            self._started_over()
        self._complete = self._news = True
        self._settle()
        self._flush()

    def _settle(self) -> None:
        # Only when both sources have told all they have is a leftover in the kernel known to be one.
        if self._complete and self._nodes_complete:
            self._table.settle()

    def _reach(self, identity_revision: int) -> None:
        self._table.reach(identity_revision)
        self._flush()

    def _flush(self) -> Changes:
        changes = self._table.changes()
        try:
            if changes:
                with in_bpf_phase("maps.sync"):
                    self._kernel.write_ipcache(changes)
                self._table.written(changes)
        except DatapathError as problem:
            self.state.error = str(problem)
            _log.error("ipcache.write_failed", error=str(problem))
            if self._retry is None or self._retry.done():
                self._retry = asyncio.create_task(self._try_again())
            return Changes()
        revision = self._table.applied_revision
        self.state.revision = revision
        if self._news:
            self._news = False
            self.state.in_force(revision, complete=self._complete)
        self.applied.set(revision)
        return changes

    async def _try_again(self) -> None:
        backoff = Backoff(first=0.2)
        while self._table.changes():
            await asyncio.sleep(backoff.next())
            # The retry is this loop; a failure in it must not start another.
            self._flush()
        self.state.error = ""


def _differences(
    known: Mapping[str, Meaning], read: Callable[[], Mapping[str, Meaning]]
) -> dict[str, Meaning | None]:
    found = read()
    return {
        prefix: found.get(prefix)
        for prefix in known.keys() | found.keys()
        if known.get(prefix) != found.get(prefix)
    }
