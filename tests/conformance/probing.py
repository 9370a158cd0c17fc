"""The probes of a stage, as packets and as questions to the live policy service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from cli.lab import probing, underlay
from tests.conformance.cases import HEALTH, HOST, REMOTE_NODE, Case, Probe
from tests.conformance.cluster import CaseCluster

# Long enough for two cores that do other things too; a denied probe takes it whole.
ANSWERED_WITHIN = 0.8
ASKED_AT_ONCE = 8


class Uncarried(Enum):
    """Why a probe cannot be sent as a packet."""

    HEALTH = "nodes have no health endpoint"
    IPV6 = "this kernel has no IPv6"


def uncarried(probe: Probe, families: Sequence[int]) -> Uncarried | None:
    """What keeps a probe from being sent, where it could be sent over `families`; None for nothing."""
    if HEALTH in probe.ends:
        return Uncarried.HEALTH
    return None if families else Uncarried.IPV6


@dataclass
class Tally:
    """What has been tried. A probe is sent, and asked about, over each IP version that it can have."""

    cases: int = 0
    probes: int = 0
    packets: Counter[int] = field(default_factory=Counter)
    explained: Counter[int] = field(default_factory=Counter)
    uncarried: Counter[Uncarried] = field(default_factory=Counter)

    def plain(self) -> dict[str, Any]:
        """The same in values that one process can hand to another."""
        return {
            "cases": self.cases,
            "probes": self.probes,
            "packets": list(self.packets.items()),
            "explained": list(self.explained.items()),
            "uncarried": [(reason.name, count) for reason, count in self.uncarried.items()],
        }

    def add(self, plain: dict[str, Any]) -> None:
        """Counts what another process has tried as well; `plain` is what :meth:`plain` returned there."""
        self.cases += plain["cases"]
        self.probes += plain["probes"]
        self.packets.update(dict(plain["packets"]))
        self.explained.update(dict(plain["explained"]))
        self.uncarried.update({Uncarried[name]: count for name, count in plain["uncarried"]})

    def lines(self) -> list[str]:
        """For people."""
        sent, explained = (
            " and ".join(f"{count[family]} over IPv{family}" for family in sorted(count))
            for count in (self.packets, self.explained)
        )
        told = [f"{self.cases} cases, {self.probes} probes: {sent} sent; {explained} explained"]
        told += [f"not sent: {count} ({reason.value})" for reason, count in self.uncarried.items()]
        return told


def run(cluster: CaseCluster, case: Case, probes: Sequence[Probe], tally: Tally) -> list[str]:
    """Send and ask about all probes; what did not come out as published, a line each."""
    tally.probes += len(probes)
    sent: dict[int, list[Probe]] = {}
    asked: dict[int, list[Probe]] = {}
    for probe in probes:
        families = [family for family in probe.families(case) if family in cluster.lab.network.families]
        reason = uncarried(probe, families)
        if reason is not None:
            tally.uncarried[reason] += 1
        for family in families:
            if reason is None:
                sent.setdefault(family, []).append(probe)
            if not probe.within_a_pod:
                asked.setdefault(family, []).append(probe)
    with ThreadPoolExecutor() as pool:
        told = [pool.submit(_send, cluster, chosen, family) for family, chosen in sent.items()]
        told += [pool.submit(_explain, cluster, chosen, family) for family, chosen in asked.items()]
        wrong = [line for each in told for line in each.result()]
    tally.packets.update({family: len(chosen) for family, chosen in sent.items()})
    tally.explained.update({family: len(chosen) for family, chosen in asked.items()})
    return wrong


def _send(cluster: CaseCluster, probes: Sequence[Probe], family: int) -> list[str]:
    asked = [(*_ends(cluster, probe, family), probe.port, probe.protocol) for probe in probes]
    results = cluster.lab.probe_many(asked, family=family, timeout=ANSWERED_WITHIN)
    return [
        f"{probe} over IPv{family}: expected {_word(probe.allowed)}, was {result.verdict} ({result.how})"
        for probe, result in zip(probes, results, strict=True)
        if result.allowed != probe.allowed
    ]


def _explain(cluster: CaseCluster, probes: Sequence[Probe], family: int) -> list[str]:
    ends = probing.Ends(cluster.lab, family)

    def ask(probe: Probe) -> str:
        pair = _pair(ends, *_ends(cluster, probe, family))
        told = probing.explain(cluster.lab, pair, probe.protocol, probe.port)
        if told["allowed"] == probe.allowed:
            return ""
        why = "; ".join(f"{way}: {told[way]['reason']}" for way in ("egress", "ingress"))
        expected, said = _word(probe.allowed), _word(told["allowed"])
        return f"{probe} over IPv{family}: expected {expected}, Explain says {said} ({why})"

    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return [line for line in pool.map(ask, probes) if line]


def _pair(ends: probing.Ends, source: str, target: str) -> tuple[probing.End, probing.End]:
    if HEALTH not in (source, target):
        return ends.pair(source, target)
    # The lab has no such end; the policy service knows it all the same.
    first, second = (
        probing.End(HEALTH, "", None, reserved="health") if end == HEALTH else ends.pair(end, end)[0]
        for end in (source, target)
    )
    return first, second


def _ends(cluster: CaseCluster, probe: Probe, family: int) -> tuple[str, str]:
    """The ends of a probe as the lab knows them."""
    source, target = probe.ends
    return _end(cluster, source, target, family), _end(cluster, target, source, family)


def _end(cluster: CaseCluster, text: str, other: str, family: int) -> str:
    if text not in (HOST, REMOTE_NODE):
        # The world has as many addresses of the other kind: the documentation's (RFC 3849).
        return f"2001:db8::{text}" if family == 6 and not {"/", ":", "@"} & set(text) else text
    if "/" in other:
        return text
    # Where neither end is a pod, the node is that of the case's.
    node = cluster.node(cluster.first_pod)
    if text == REMOTE_NODE:
        node = next(each for each in cluster.lab.nodes if each != node)
    return underlay.node_address(node, family)


def _word(allowed: bool) -> str:
    return "allowed" if allowed else "denied"
