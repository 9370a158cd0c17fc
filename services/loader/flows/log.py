"""The newest flows, remembered for a while, and told to whoever follows."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final, Protocol

from services.loader.flows.filters import FlowQuery
from services.loader.flows.flow import Flow, Lost
from services.loader.interfaces import PacketReport, ReportKind, Verdict

# Cilium's number for a drop that no entry decided: the direction is enforced and nothing allows the packet.
POLICY_DENIED: Final = 133
_FOLLOWER_BACKLOG: Final = 1024


class FlowNames(Protocol):
    """Who an address is, and which rule a number stands for."""

    def pod(self, ip: str) -> str:
        """ "namespace/name" of the pod that has an address, or empty."""

    def rule(self, cookie: int) -> str:
        """A rule, for people, or empty."""

    def default_deny(self, endpoint_id: int, direction: int) -> Sequence[str]:
        """The policies that make an endpoint default to deny."""


class FlowLog:
    """The newest flows but for traces, and whoever follows. ``offset`` gives the difference between now since
    the epoch and CLOCK_MONOTONIC, in ns.
    """

    def __init__(
        self,
        names: FlowNames,
        *,
        capacity: int,
        offset: Callable[[], int] = lambda: time.time_ns() - time.monotonic_ns(),
    ) -> None:
        self._names = names
        self._offset = offset
        self._items: deque[Flow | Lost] = deque(maxlen=capacity)
        self._followers: set[_Follower] = set()

    def report(self, report: PacketReport) -> None:
        """Takes a report of the datapath."""
        flow = self._flow(report)
        # They would push out what somebody may ask for later.
        if report.kind is not ReportKind.TRACE:
            self._items.append(flow)
        for follower in self._followers:
            follower.put(flow)

    def lose(self, count: int) -> None:
        """So many reports were lost."""
        self._items.append(Lost(count))
        for follower in self._followers:
            follower.lose(count)

    def recent(self, query: FlowQuery = FlowQuery()) -> list[Flow | Lost]:
        """What is remembered of the flows that are asked for, oldest first."""
        found = [
            item
            for item in self._items
            if (isinstance(item, Flow) and item.time_ns >= query.since_ns and query.wants(item))
            or (isinstance(item, Lost) and not query.since_ns)
        ]
        return found[-query.last :] if query.last else found

    async def get(self, query: FlowQuery) -> AsyncGenerator[Flow | Lost, None]:
        """Remembered flows, and with ``follow`` those that come."""
        follower = _Follower(query)
        if query.follow:
            self._followers.add(follower)
        try:
            if not query.follow or query.last or query.since_ns:
                for item in self.recent(query):
                    yield item
            while query.follow:
                for item in await follower.take():
                    yield item
        finally:
            self._followers.discard(follower)

    def _flow(self, report: PacketReport) -> Flow:
        rule = self._names.rule(report.rule_cookie) if report.rule_cookie else ""
        if not rule and report.verdict is not Verdict.FORWARDED and report.reason_code == POLICY_DENIED:
            policies = self._names.default_deny(report.endpoint_id, report.direction)
            rule = f"default deny: {', '.join(policies)}" if policies else "default deny"
        return Flow(
            report.time_ns + self._offset(),
            report,
            self._names.pod(report.source),
            self._names.pod(report.destination),
            rule,
        )


class _Follower:
    """What a reader wants and has not taken yet. When that is too much, what comes is counted instead."""

    def __init__(self, query: FlowQuery) -> None:
        self._query = query
        self._items: list[Flow | Lost] = []
        self._lost = 0
        self._filled = asyncio.Event()

    def put(self, flow: Flow) -> None:
        if not self._query.wants(flow):
            return
        if len(self._items) >= _FOLLOWER_BACKLOG:
            self._lost += 1
        else:
            if self._lost:
                self._items.append(Lost(self._lost))
                self._lost = 0
            self._items.append(flow)
        self._filled.set()

    def lose(self, count: int) -> None:
        self._lost += count
        self._filled.set()

    async def take(self) -> list[Flow | Lost]:
        await self._filled.wait()
        self._filled.clear()
        items, self._items = self._items, []
        if self._lost:
            items.append(Lost(self._lost))
            self._lost = 0
        return items
