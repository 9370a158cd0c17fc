"""How what the kernel did differs from what the model says."""

from __future__ import annotations

from tests.fuzz.kernel import KernelNode, KnownFlow
from tests.fuzz.model.conntrack import Conntrack, Flow
from tests.fuzz.model.parsing import TCP, Tuple5
from tests.fuzz.model.programs import Action, Decision, Input
from tests.fuzz.trial import Outcome

_ACTIONS = {0: Action.PASS, 2: Action.DROP, 7: Action.REDIRECT}


def compare(node: KernelNode, given: Input, decision: Decision) -> list[str]:
    """Runs the packet in the kernel; differences, a line each."""
    outcome = node.run(given)
    action = _ACTIONS.get(outcome.action)
    if action is not decision.action:
        shown = action.value if action is not None else f"return {outcome.action}"
        reason = f", reason {node.dropped(0)}" if action is Action.DROP else ""
        breach = "BREACH: " if decision.action is Action.DROP else ""
        expected = decision.action.value + (f", {decision.reason!r}" if decision.reason is not None else "")
        return [f"{breach}the model says {expected}; the kernel {shown}{reason} {node.forwarded() or ''}"]
    if action is Action.DROP:
        assert decision.reason is not None
        counted = node.dropped(decision.reason)
        return [] if counted == decision.reason else [f"reason: model {decision.reason!r}, kernel {counted}"]
    return [*_forward(node, decision), *_content(outcome, decision)]


def _forward(node: KernelNode, decision: Decision) -> list[str]:
    if decision.forward is None:
        return []
    found = node.forwarded()
    way = decision.forward
    expected = (way.way.value, way.ifindex, way.vni, way.remote)
    if found is None or found == expected:
        return []
    return [f"forward (kind, ifindex, VNI, remote): model {expected}, kernel {found}"]


def _content(outcome: Outcome, decision: Decision) -> list[str]:
    differences = []
    if decision.mark is not None and outcome.mark != decision.mark:
        differences.append(f"mark: model {decision.mark:#x}, kernel {outcome.mark:#x}")
    if decision.frame is not None and not _same_but_for_zero(outcome.frame, decision.frame):
        differences.append(f"frame: model  {decision.frame.hex()}")
        differences.append(f"       kernel {outcome.frame.hex()}")
    return differences


def _same_but_for_zero(first: bytes, second: bytes) -> bool:
    """Whether two frames differ at most in which of its two zeros the IPv4 checksum is (RFC 1624)."""
    return first == second or (
        first[12:14] == b"\x08\x00"
        and first[:24] + first[26:] == second[:24] + second[26:]
        and {first[24:26], second[24:26]} == {b"\0\0", b"\xff\xff"}
    )


def compare_flows(conntrack: Conntrack, known: dict[Tuple5, KnownFlow]) -> list[str]:
    """How the flows differ."""
    expected = {key: _expected(flow) for key, flow in conntrack.flows.items()}
    differences = []
    for key in expected.keys() | known.keys():
        if expected.get(key) != known.get(key):
            differences.append(f"flow {key}")
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
    sides = tuple((side.owner, side.identity) if side else (0, 0) for side in flow.sides)
    return KnownFlow(
        lifetime, (flow.packets[0], flow.packets[1]), (flow.octets[0], flow.octets[1]), bool(flow.packets[1]),
        flow.closed, (sides[0], sides[1]),
    )  # fmt: skip
