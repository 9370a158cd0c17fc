"""Flows: what the datapath reported of packets, with the names of pods and rules."""

from __future__ import annotations

from dataclasses import dataclass

from services.loader.interfaces import PacketReport


@dataclass(frozen=True, slots=True)
class Flow:
    """A report with names. ``time_ns`` is since the epoch; the pods are "namespace/name" or empty; ``rule``
    is what decided, for people, or empty.
    """

    time_ns: int
    report: PacketReport
    source_pod: str
    destination_pod: str
    rule: str


@dataclass(frozen=True, slots=True)
class Lost:
    """So many reports were lost between the items before and after this one."""

    count: int
