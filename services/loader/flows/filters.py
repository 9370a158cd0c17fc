"""Which flows are wanted."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from services.loader.flows.flow import Flow
from services.loader.interfaces import ReportKind, Verdict


@dataclass(frozen=True, slots=True)
class Addresses:
    """An address, or all of a prefix, of one family."""

    family: socket.AddressFamily
    bits: int
    beyond: int

    @classmethod
    def parse(cls, text: str) -> Addresses:
        """From an address or ``ADDRESS/LENGTH`` in any spelling; bits beyond the length do not count.

        Raises ValueError for what is neither.
        """
        address, slash, length = text.partition("/")
        found = ipaddress.ip_address(address)
        if isinstance(found, ipaddress.IPv6Address) and found.scope_id:
            raise ValueError(f"{text!r} names a device")
        if slash and not (length.isascii() and length.isdigit() and int(length) <= found.max_prefixlen):
            raise ValueError(f"{length!r} is no length of an IPv{found.version} prefix")
        beyond = found.max_prefixlen - int(length) if slash else 0
        family = socket.AF_INET if found.version == 4 else socket.AF_INET6
        return cls(family, int(found) >> beyond, beyond)

    def __contains__(self, ip: str) -> bool:
        """Whether an address, or "" for none, is one of these."""
        if not ip or (":" in ip) is not (self.family == socket.AF_INET6):
            return False
        return int.from_bytes(socket.inet_pton(self.family, ip), "big") >> self.beyond == self.bits


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """Matches a flow when all that is given match. A pod that ends in "/" is a namespace; ``ip`` is at either
    end.
    """

    source_pod: str = ""
    destination_pod: str = ""
    source_ip: Addresses | None = None
    destination_ip: Addresses | None = None
    ip: Addresses | None = None
    kind: ReportKind | None = None
    verdict: Verdict | None = None
    family: int = 0
    destination_port: int = 0
    protocols: tuple[int, ...] = ()

    def matches(self, flow: Flow) -> bool:
        """Whether the flow is one of those meant."""
        report = flow.report
        return (
            self.kind in (None, report.kind)
            and self.verdict in (None, report.verdict)
            and self.family in (0, report.family)
            and self.destination_port in (0, report.destination_port)
            and (not self.protocols or report.protocol in self.protocols)
            and _pod_matches(self.source_pod, flow.source_pod)
            and _pod_matches(self.destination_pod, flow.destination_pod)
            and (self.source_ip is None or report.source in self.source_ip)
            and (self.destination_ip is None or report.destination in self.destination_ip)
            and (self.ip is None or report.source in self.ip or report.destination in self.ip)
        )


@dataclass(frozen=True, slots=True)
class FlowQuery:
    """Which flows somebody asks for.

    Wanted is what one of ``allow`` matches, if there are any, and none of ``deny``. Of what is remembered:
    the newest ``last``, 0 for all, from ``since_ns`` on. With ``follow`` also what comes; then nothing of
    what is remembered unless ``last`` or ``since_ns`` ask. ``traces``: those too, which nobody remembers.
    """

    allow: Sequence[FlowFilter] = ()
    deny: Sequence[FlowFilter] = ()
    last: int = 0
    since_ns: int = 0
    follow: bool = False
    traces: bool = False

    def wants(self, flow: Flow) -> bool:
        """Whether the flow is asked for."""
        if flow.report.kind is ReportKind.TRACE and not self.traces:
            return False
        if self.allow and not any(each.matches(flow) for each in self.allow):
            return False
        return not any(each.matches(flow) for each in self.deny)


def _pod_matches(pattern: str, pod: str) -> bool:
    if not pattern:
        return True
    return pod.startswith(pattern) if pattern.endswith("/") else pod == pattern
