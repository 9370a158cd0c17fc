"""Flows: what the datapath reports of packets, with the names of pods and rules; remembered for a while,
filtered, followed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from services.loader.interfaces import PacketReport

# Cilium's number for a drop that no entry decided: the direction is enforced and nothing allows the packet.
POLICY_DENIED: Final = 133
_FOLLOWER_BACKLOG: Final = 1024


@dataclass(frozen=True, slots=True)
class FlowEnd:
    """One end of a flow; ``pod`` is "namespace/name" or empty."""

    ip: str
    port: int
    identity: int
    pod: str = ""


@dataclass(frozen=True, slots=True)
class Flow:
    """What became of a packet; ``time_ns`` is since the epoch, ``direction`` 0 for ingress and 1 for
    egress.
    """

    time_ns: int
    dropped: bool
    reason: str
    reason_code: int
    direction: int
    protocol: int
    source: FlowEnd
    destination: FlowEnd
    rule: str
    rule_cookie: int
    policy_revision: int
    tcp_flags: int
    endpoint_id: int
    location: str


@dataclass(frozen=True, slots=True)
class Lost:
    """So many reports were lost between the items before and after this one."""

    count: int


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """Matches a flow when all that is given match. ``dropped`` None is either; a pod that ends in "/" is a
    namespace.
    """

    source_pod: str = ""
    destination_pod: str = ""
    source_ip: str = ""
    destination_ip: str = ""
    dropped: bool | None = None
    destination_port: int = 0
    protocol: int = 0

    def matches(self, flow: Flow) -> bool:
        """Whether the flow is one of those meant."""
        return (
            _pod_matches(self.source_pod, flow.source.pod)
            and _pod_matches(self.destination_pod, flow.destination.pod)
            and self.source_ip in ("", flow.source.ip)
            and self.destination_ip in ("", flow.destination.ip)
            and self.dropped in (None, flow.dropped)
            and self.destination_port in (0, flow.destination.port)
            and self.protocol in (0, flow.protocol)
        )


def wanted(flow: Flow, allow: Sequence[FlowFilter], deny: Sequence[FlowFilter]) -> bool:
    """One of ``allow`` matches, or there is none; and none of ``deny`` does."""
    if allow and not any(each.matches(flow) for each in allow):
        return False
    return not any(each.matches(flow) for each in deny)


class FlowNames(Protocol):
    """Who an address is, and which rule a number stands for."""

    def pod(self, ip: str) -> str:
        """ "namespace/name" of the pod that has an address, or empty."""

    def rule(self, cookie: int) -> str:
        """A rule, for people, or empty."""

    def default_deny(self, endpoint_id: int, direction: int) -> Sequence[str]:
        """The policies that make an endpoint default to deny."""


class FlowLog:
    """The newest flows, and whoever follows. ``clock`` gives the difference between now since the epoch and
    CLOCK_MONOTONIC, in ns.
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
        self._append(self._flow(report))

    def lose(self, count: int) -> None:
        """So many reports were lost."""
        self._append(Lost(count))

    def recent(
        self,
        *,
        allow: Sequence[FlowFilter] = (),
        deny: Sequence[FlowFilter] = (),
        last: int = 0,
        since_ns: int = 0,
    ) -> list[Flow | Lost]:
        """Remembered flows that are wanted, oldest first; the newest ``last`` of them unless that is 0."""
        found = [
            item
            for item in self._items
            if (isinstance(item, Flow) and item.time_ns >= since_ns and wanted(item, allow, deny))
            or (isinstance(item, Lost) and not since_ns)
        ]
        return found[-last:] if last else found

    async def get(
        self,
        *,
        allow: Sequence[FlowFilter] = (),
        deny: Sequence[FlowFilter] = (),
        last: int = 0,
        since_ns: int = 0,
        follow: bool = False,
    ) -> AsyncGenerator[Flow | Lost, None]:
        """Remembered flows, and with ``follow`` those that come; then none is remembered unless ``last`` or
        ``since_ns`` ask.
        """
        follower = _Follower()
        if follow:
            self._followers.add(follower)
        try:
            if not follow or last or since_ns:
                for item in self.recent(allow=allow, deny=deny, last=last, since_ns=since_ns):
                    yield item
            while follow:
                for item in await follower.take():
                    if isinstance(item, Lost) or wanted(item, allow, deny):
                        yield item
        finally:
            self._followers.discard(follower)

    def _append(self, item: Flow | Lost) -> None:
        self._items.append(item)
        for follower in self._followers:
            follower.put(item)

    def _flow(self, report: PacketReport) -> Flow:
        rule = self._names.rule(report.rule_cookie) if report.rule_cookie else ""
        if not rule and report.dropped and report.reason_code == POLICY_DENIED:
            policies = self._names.default_deny(report.endpoint_id, report.direction)
            rule = f"default deny: {', '.join(policies)}" if policies else "default deny"
        return Flow(
            time_ns=report.time_ns + self._offset(),
            dropped=report.dropped,
            reason=report.reason,
            reason_code=report.reason_code,
            direction=report.direction,
            protocol=report.protocol,
            source=self._end(report.source, report.source_port, report.source_identity),
            destination=self._end(report.destination, report.destination_port, report.destination_identity),
            rule=rule,
            rule_cookie=report.rule_cookie,
            policy_revision=report.policy_revision,
            tcp_flags=report.tcp_flags,
            endpoint_id=report.endpoint_id,
            location=report.location,
        )

    def _end(self, ip: str, port: int, identity: int) -> FlowEnd:
        return FlowEnd(ip, port, identity, self._names.pod(ip))


class _Follower:
    """What a reader has not taken yet. When that is too much, what comes is counted instead."""

    def __init__(self) -> None:
        self._items: list[Flow | Lost] = []
        self._lost = 0
        self._filled = asyncio.Event()

    def put(self, item: Flow | Lost) -> None:
        if isinstance(item, Lost):
            self._lost += item.count
        elif len(self._items) >= _FOLLOWER_BACKLOG:
            self._lost += 1
        else:
            if self._lost:
                self._items.append(Lost(self._lost))
                self._lost = 0
            self._items.append(item)
        self._filled.set()

    async def take(self) -> Iterable[Flow | Lost]:
        await self._filled.wait()
        self._filled.clear()
        items, self._items = self._items, []
        if self._lost:
            items.append(Lost(self._lost))
            self._lost = 0
        return items


def _pod_matches(pattern: str, pod: str) -> bool:
    if not pattern:
        return True
    return pod.startswith(pattern) if pattern.endswith("/") else pod == pattern
