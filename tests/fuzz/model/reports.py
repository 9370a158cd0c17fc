"""Reports: what is told of drops, verdicts and flows, and to whom it is told of what is known by then."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.fuzz.model.parsing import FIN, RST, Packet
from tests.fuzz.model.policy import Verdict
from tests.fuzz.model.reasons import Reason
from tests.fuzz.model.world import World

CAPTURED = 96
# What stacks say on their link without being asked is only counted.
_CHATTER = (Reason.ARP_IGNORED, Reason.ND_IGNORED)


@dataclass(frozen=True, slots=True)
class Report:
    """An event. None stands for what the page leaves open.

    ``kind``, ``verdict``, ``point`` and ``state`` are the loader's words; ``addresses`` are (source,
    destination), of an error those of its own header, and ``flow`` the protocol and ports of the flow that it
    is about. ``captured`` is how the frame begins, ``length`` how long it is.
    """

    kind: str
    reason: int
    is_ingress: bool
    verdict: str
    ifindex: int
    endpoint_id: int
    identities: tuple[int, int]
    addresses: tuple[bytes, bytes] | None
    flow: tuple[int, int, int] | None
    flags: int | None
    length: int
    captured: bytes
    rule: tuple[int, int] | None = None
    point: str = ""
    state: str = ""


@dataclass(slots=True)
class About:
    """What is known of the packet in hand, as far as its program has come.

    ``endpoint_id`` is whose verdict is in progress or was the last.
    """

    ifindex: int
    is_ingress: bool
    frame: bytes
    source_identity: int = 0
    destination_identity: int = 0
    endpoint_id: int = 0
    addresses: tuple[bytes, bytes] | None = None
    packet: Packet | None = None


@dataclass(slots=True)
class Reporter:
    """Makes the reports on one packet, if somebody wants any."""

    world: World
    about: About
    made: list[Report] = field(default_factory=list)

    def dropped(self, reason: Reason) -> None:
        """The packet goes no further."""
        if self.world.wants_events and reason not in _CHATTER:
            self.made.append(self._report("drop", reason, "deny"))

    def judged(self, verdict: Verdict, revision: int, *, is_first: bool) -> None:
        """A policy was looked up; ``is_first``: this side has not judged the flow before."""
        if not self.world.wants_events:
            return
        if verdict.spared is not None:
            reason, said, entry = verdict.spared.reason or 0, "audit", verdict.spared.entry
        elif verdict.reason is None and verdict.is_told and is_first:
            reason, said, entry = 0, "allow", verdict.entry
        else:
            return
        rule = (entry.cookie if entry is not None else 0, revision)
        self.made.append(self._report("verdict", reason, said, rule=rule))

    def failsafe(self, revision: int) -> None:
        """The node's policy denies a flow that no policy may close."""
        if self.world.wants_events:
            self.made.append(self._report("verdict", 0, "allow", rule=(0, revision)))

    def admitted(self, packet: Packet, point: str, *, is_new: bool) -> None:
        """All verdicts are in."""
        if packet.is_error:
            state = "related"
        elif is_new:
            state = "new"
        else:
            state = "closing" if packet.flags & (FIN | RST) else ""
        if self.world.wants_trace and state:
            self.made.append(self._report("trace", 0, "allow", point=point, state=state))

    def _report(
        self,
        kind: str,
        reason: int,
        verdict: str,
        *,
        rule: tuple[int, int] | None = None,
        point: str = "",
        state: str = "",
    ) -> Report:
        about, packet = self.about, self.about.packet
        # What is no packet may or may not have had addresses.
        addresses = None if reason == Reason.INVALID_PACKET else about.addresses
        return Report(
            kind=kind, reason=reason, is_ingress=about.is_ingress, verdict=verdict, ifindex=about.ifindex,
            endpoint_id=about.endpoint_id, identities=(about.source_identity, about.destination_identity),
            addresses=addresses,
            flow=(packet.flow.protocol, packet.flow.sport, packet.flow.dport) if packet else None,
            flags=packet.flags if packet else None, length=len(about.frame),
            captured=about.frame[:CAPTURED], rule=rule, point=point, state=state,
        )  # fmt: skip
