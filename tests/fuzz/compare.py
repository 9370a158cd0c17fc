"""How what the kernel did differs from what the model says."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import TypeVar

from services.loader.bpf.events import Event
from services.loader.bpf.layout import Direction
from tests.fuzz.kernel import KernelNode, Ran
from tests.fuzz.model import sums
from tests.fuzz.model.conntrack import Conntrack, Flow
from tests.fuzz.model.masquerade import Masquerade, Place
from tests.fuzz.model.parsing import TCP, Tuple5
from tests.fuzz.model.reasons import Reason
from tests.fuzz.model.reports import Report
from tests.fuzz.model.steps import Action, Decision, Input, Way
from tests.fuzz.rows import KnownFlow

DROPPED = 2
_ACTIONS = {0: Action.PASS, DROPPED: Action.DROP, 7: Action.REDIRECT}
_IPV4_CHECKSUM = 24
_K = TypeVar("_K")
_V = TypeVar("_V")


def compare(node: KernelNode, given: Input, ran: Ran, decision: Decision, reports: list[Report]) -> list[str]:
    """Differences, a line each."""
    outcome = ran.outcome
    if not outcome.is_sum_right:
        return ["the device's sum over the packet is wrong by now"]
    action = _ACTIONS.get(outcome.action)
    if _is_not_to_be_seen(given, decision, action):
        return []
    if action is not decision.action:
        shown = action.value if action is not None else f"return {outcome.action}"
        reason = f", {node.counted()}" if action is Action.DROP else ""
        breach = "BREACH: " if decision.action is Action.DROP else ""
        expected = decision.action.value + (f", {decision.reason!r}" if decision.reason is not None else "")
        return [f"{breach}the model says {expected}; the kernel {shown}{reason} {ran.forwarded}"]
    differences = _reports(reports, ran.reports)
    if action is Action.DROP:
        return _drop(node, given, decision.reason) + differences
    return [
        *_forward(ran, decision),
        *_content(given, ran, decision),
        *_departure(ran, decision),
        *differences,
    ]


def _is_not_to_be_seen(given: Input, decision: Decision, action: Action | None) -> bool:
    """Whether a test run cannot tell: it does not know where layer 4 is, and so not how long segments are."""
    leaves = decision.forward is not None and decision.forward.way in (Way.EGRESS, Way.NEIGHBOUR)
    return given.gso > 0 and leaves and action is Action.PASS


def _drop(node: KernelNode, given: Input, reason: Reason | None) -> list[str]:
    assert reason is not None
    counted = node.counted(reason)
    if reason not in [count.reason for count in counted]:
        return [f"reason: model {reason!r}, kernel {counted}"]
    # More than one: the namespace's own stack sent something in between.
    if len(counted) == 1 and counted[0].octets != len(given.frame):
        return [f"bytes dropped: model {len(given.frame)}, kernel {counted}"]
    return []


def _forward(ran: Ran, decision: Decision) -> list[str]:
    way = decision.forward
    if way is None:
        return []
    expected = (way.way.value, way.ifindex, way.vni, way.remote)
    if ran.forwarded == expected:
        return []
    return [f"forward (kind, ifindex, VNI, remote): model {expected}, kernel {ran.forwarded}"]


def _content(given: Input, ran: Ran, decision: Decision) -> list[str]:
    differences, outcome = [], ran.outcome
    if decision.mark is not None and outcome.mark != decision.mark:
        differences.append(f"mark: model {decision.mark:#x}, kernel {outcome.mark:#x}")
    if decision.queue is not None and ran.queue != decision.queue:
        differences.append(f"queue mapping: model {decision.queue}, kernel {ran.queue}")
    if decision.frame is None:
        return differences
    if not _is_same(outcome.frame, decision.frame, decision.checksums):
        differences.append(f"frame: model  {decision.frame.hex()}")
        differences.append(f"       kernel {outcome.frame.hex()}")
    elif spoilt := sums.right(given.frame) - sums.right(outcome.frame):
        differences.append(f"checksums that were right and are not: {', '.join(sorted(spoilt))}")
        differences.append(f"       kernel {outcome.frame.hex()}")
    return differences


def _is_same(first: bytes, second: bytes, checksums: tuple[int, ...]) -> bool:
    """Whether two frames differ at most in which of its two zeros a checksum is (RFC 1624)."""
    if first == second:
        return True
    changed = bytearray(first)
    if first[12:14] == b"\x08\x00":
        checksums += (_IPV4_CHECKSUM,)
    for place in checksums:
        if {first[place : place + 2], second[place : place + 2]} == {b"\0\0", b"\xff\xff"}:
            changed[place : place + 2] = second[place : place + 2]
    return changed == second


def _departure(ran: Ran, decision: Decision) -> list[str]:
    """The earliest departure time and the one of the endpoint's next packet."""
    outcome, (before, after) = ran.outcome, ran.departures
    if not decision.is_paced:
        kept = before == after and not outcome.departure
        return [] if kept else [f"departure: model none, kernel {outcome.departure}, {before} to {after}"]
    started, ended = ran.clock
    if before > ended:
        waits = outcome.departure == before and after > before
        return [] if waits else [f"departure: model {before}, kernel {outcome.departure}, next {after}"]
    if before < started and (outcome.departure or not after > started):
        return [f"departure: model at once, kernel {outcome.departure}, next {after}"]
    return []


def _reports(expected: list[Report], events: list[Event]) -> list[str]:
    found = [_report(event) for event in events]
    if len(expected) == len(found) and all(map(_says, expected, found)):
        return []
    shown = [f"  model  {report}" for report in expected] + [f"  kernel {report}" for report in found]
    kinds = [[report.kind for report in reports] for reports in (expected, found)]
    return [f"events: model {kinds[0]}, kernel {kinds[1]}{_first_field(expected, found)}", *shown]


def _first_field(expected: list[Report], found: list[Report]) -> str:
    for one, other in zip(expected, found, strict=False):
        for name in Report.__slots__:
            wanted = getattr(one, name)
            if wanted is not None and wanted != getattr(other, name):
                return f", {name} of a {one.kind}"
    return ""


def _says(expected: Report, found: Report) -> bool:
    """Whether an event says what it should, and beyond that anything."""
    return all(getattr(expected, name) in (None, getattr(found, name)) for name in Report.__slots__)


def _report(event: Event) -> Report:
    return Report(
        kind=event.kind, reason=event.reason, is_ingress=event.direction == Direction.INGRESS,
        verdict=event.verdict, ifindex=event.ifindex, endpoint_id=event.endpoint_id,
        identities=(event.source_identity, event.destination_identity),
        addresses=(_packed(event.source), _packed(event.destination)) if event.source else None,
        flow=(event.protocol, event.source_port, event.destination_port), flags=event.tcp_flags,
        length=event.length, captured=event.packet, rule=(event.rule_cookie, event.policy_revision),
        point=event.point, state=event.state,
    )  # fmt: skip


def _packed(address: str) -> bytes:
    return ip_address(address).packed


def compare_flows(conntrack: Conntrack, known: dict[Tuple5, KnownFlow]) -> list[str]:
    """How the flows differ."""
    return _tables("flow", {key: _expected(flow) for key, flow in conntrack.flows.items()}, known)


def compare_translations(
    masquerade: Masquerade, known: tuple[dict[Tuple5, int], dict[Place, Tuple5]]
) -> list[str]:
    """How the two tables of translations differ."""
    return [
        *_tables("flow's translation", masquerade.originals, known[0]),
        *_tables("flow's answer", masquerade.owners, known[1]),
    ]


def _tables(name: str, expected: Mapping[_K, _V], known: Mapping[_K, _V]) -> list[str]:
    differences = []
    for key in expected.keys() | known.keys():
        if expected.get(key) != known.get(key):
            differences.append(f"{name} {key}")
            differences.append(f"  model  {expected.get(key)}")
            differences.append(f"  kernel {known.get(key)}")
    return differences


def _expected(flow: Flow) -> KnownFlow:
    if flow.expired:
        lifetime = "expired"
    elif flow.tuple.protocol != TCP:
        lifetime = "any"
    elif flow.closed:
        lifetime = "closing"
    else:
        lifetime = "established" if flow.packets[1] else "syn"
    return KnownFlow(
        lifetime, (flow.packets[0], flow.packets[1]), (flow.octets[0], flow.octets[1]), bool(flow.packets[1]),
        flow.closed, (flow.sides[0], flow.sides[1]),
    )  # fmt: skip
