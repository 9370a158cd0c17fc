"""Translated flows: "Masquerading" of the page.

Which port a flow gets is for the programs to choose. So the model is told what they chose, and holds it to
the rules; a choice against them is a Breach.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.model.conntrack import Conntrack
from tests.fuzz.model.parsing import SCTP, Packet, Tuple5
from tests.fuzz.model.reasons import Drop, Reason
from tests.fuzz.model.world import REMOTE_NODE as ANOTHER_NODE
from tests.fuzz.model.world import WORKLOADS, World, is_within

# So many ports are tried. Among fewer a free one is always found.
TRIES = 32
# And in IPv4 what is above: reserved, and the broadcast address.
_MULTICAST = {4: (bytes((224, 0, 0, 0)), 3), 16: (b"\xff" + bytes(15), 8)}

# What the answer to a translated packet looks like: peer's address and port, protocol, the node's port.
Place = tuple[bytes, int, int, int]


class Breach(Exception):
    """The programs chose a port that the rules do not allow."""


class Masquerade:
    """The node's translations. ``originals`` lead from a flow, as its pod sends, to its port; ``owners`` from
    what the answer looks like to the flow.
    """

    def __init__(self, world: World, conntrack: Conntrack) -> None:
        self._world = world
        self._conntrack = conntrack
        self.originals: dict[Tuple5, int] = {}
        self.owners: dict[Place, Tuple5] = {}

    def is_wanted(self, family: int, destination: bytes) -> bool:
        """Whether a pod's packets there have the node's address."""
        world = self._world
        if family not in world.node.own or is_multicast(destination):
            return False
        if any(is_within(destination, *prefix) for prefix in world.excluded):
            return False
        identity = world.peer_at(destination).identity
        return identity not in WORKLOADS and (bool(world.node.vxlan) or identity != ANOTHER_NODE)

    def leave(self, packet: Packet, chosen: Callable[[], int | None]) -> int:
        """The port by which a pod's packet leaves. Raises Drop, or Breach.

        ``chosen`` says which port the programs gave the flow, None for none.
        """
        flow = packet.flow
        if flow.is_echo and not flow.asked_by_source:
            raise Drop(Reason.NO_MAPPING)
        known = self.originals.get(flow)
        if known is not None:
            if self.owners.setdefault(answer(flow, known), flow) == flow:
                return known
            del self.originals[flow]
        if packet.is_error:
            raise Drop(Reason.NO_MAPPING)
        port = flow.sport if flow.protocol == SCTP else self._chosen(flow, chosen)
        if flow.protocol == SCTP and not self._is_kept(flow, port) and not self._is_free(flow, port):
            raise Drop(Reason.NO_MAPPING)
        self.originals[flow] = port
        self.owners[answer(flow, port)] = flow
        return port

    def back(self, packet: Packet) -> Tuple5 | None:
        """The flow, as its pod sends, that a packet to the node answers; None if it answers none."""
        flow = packet.flow
        if flow.is_echo and flow.asked_by_source:
            return None
        if packet.destination != self._world.node.own.get(packet.family):
            return None
        return self.owners.get((flow.source, flow.sport, flow.protocol, flow.dport))

    def forget(self, flow: Tuple5, port: int, *, is_original: bool) -> None:
        """One of a flow's entries is lost, if it is there."""
        if is_original:
            self.originals.pop(flow, None)
        elif self._is_kept(flow, port):
            del self.owners[answer(flow, port)]

    def collect(self) -> None:
        """What was for flows that are no more goes."""
        live = self._conntrack.is_live
        self.originals = {flow: port for flow, port in self.originals.items() if live(flow)}
        self.owners = {place: flow for place, flow in self.owners.items() if live(flow)}

    def _chosen(self, flow: Tuple5, chosen: Callable[[], int | None]) -> int:
        first, last = self._world.node.ports
        port = chosen()
        # Of a flow whose own entry is lost: the table may forget any.
        kept = {place[3] for place, owner in self.owners.items() if owner == flow}
        if kept:
            allowed = kept
        elif first <= flow.sport <= last and self._is_free(flow, flow.sport):
            allowed = {flow.sport}
        elif last - first < TRIES:
            allowed = {port for port in range(first, last + 1) if self._is_free(flow, port)}
        else:
            # Never so many in use that none is found.
            is_right = port is not None and first <= port <= last and self._is_free(flow, port)
            allowed = {port} if is_right and port is not None else set()
        if port is None and not allowed and last - first < TRIES:
            raise Drop(Reason.NO_MAPPING)
        if port is None or port not in allowed:
            few = sorted(allowed)[:8]
            raise Breach(f"port {port} for {flow}: may have {few or 'another'} of {first} to {last}")
        return port

    def _is_kept(self, flow: Tuple5, port: int) -> bool:
        return self.owners.get(answer(flow, port)) == flow

    def _is_free(self, flow: Tuple5, port: int) -> bool:
        place = answer(flow, port)
        peer = (place[0], place[1])
        heard = any(socket.hears(flow.protocol, port, peer) for socket in self._world.node.sockets)
        return place not in self.owners and not heard


def is_multicast(address: bytes) -> bool:
    """Whether nobody has the address for itself."""
    return is_within(address, *_MULTICAST[len(address)])


def answer(flow: Tuple5, port: int) -> Place:
    """What the answer to the flow looks like when it left by ``port``."""
    # An echo has one identifier, which comes back as it went.
    return flow.destination, port if flow.is_echo else flow.dport, flow.protocol, port
