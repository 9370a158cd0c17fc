"""The packets whose cost is measured: through which program, of which flows, and what is sent before."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from services.loader.bpf.testrun import TC_ACT_OK, TC_ACT_REDIRECT, TC_ACT_SHOT
from tests.bench.costnode import (
    ADDRESSES,
    ADDRESSES_TOO,
    AUDIT_TOO,
    CLOSED_BY_WEB_PORT,
    CLOSED_PORT,
    OPEN_PORTS,
    OTHER_NODE,
    REMOTE_ID,
    TIERS,
    WORLD_PORT,
    CostNode,
)
from tests.bench.frames import (
    ACK,
    DESTINATION_OFFSET,
    PORTS_OFFSET,
    SOURCE_OFFSET,
    SYN,
    family,
    packed,
    tcp_frame,
)
from tests.bench.replay import Stimulus

MANY_FLOWS = 100_000
# Of one pair of addresses and one destination port there are no more.
MANY_ON_ONE_PORT = 50_000
# A translated flow has two entries in a table of 131,072.
MANY_TRANSLATED_FLOWS = 50_000
_FIRST_PORT = 10_000
# Within the ports of masquerading, so that flows keep theirs and their answers can be made up.
_FIRST_TRANSLATED_PORT = 61_000
_WORLD_PEERS = 1_000
_SYN_ACK = SYN | ACK


@dataclass(frozen=True)
class Flow:
    """A flow's peer (an address; "": one that all have in common) and its ports, the initiator's first."""

    peer: str
    source_port: int
    destination_port: int


@dataclass(frozen=True)
class Leg:
    """Packets through one program, from ``source`` to ``destination``; a flow's peer stands for the latter,
    or for the former if ``from_peer``. ``reply``: the responder sends them. ``action`` is what the
    program is to do.
    """

    program: str
    ifindex: int
    source: str
    destination: str
    action: int = TC_ACT_REDIRECT
    reply: bool = False
    from_peer: bool = False
    vni: int = 0

    def stimulus(self, flows: Sequence[Flow], flags: int) -> Stimulus:
        """The packets of these flows here, with these TCP flags."""
        common = self.source if self.from_peer else self.destination
        offsets = SOURCE_OFFSET if self.from_peer else DESTINATION_OFFSET
        return Stimulus(
            tcp_frame(self.source, self.destination, 1, 1, flags),
            [packed(flow.peer or common)[-4:] + self._ports(flow) for flow in flows],
            offsets[family(common)],
            PORTS_OFFSET[family(common)],
            self.ifindex,
            self.vni,
            packed(OTHER_NODE),
        )

    def _ports(self, flow: Flow) -> bytes:
        ports = (flow.source_port, flow.destination_port)
        return struct.pack("!HH", *(reversed(ports) if self.reply else ports))


@dataclass(frozen=True)
class Case:
    """What is measured: packets of ``leg`` with ``flags``, after those of ``opening``. ``goal``: nanoseconds,
    or None.

    ``fresh``: each is the first of its flow. ``read``: somebody reads events meanwhile. ``spaces``: what the
    policies have entries in besides the normal tier for identities.
    """

    name: str
    leg: Leg
    opening: tuple[tuple[Leg, int], ...] = ()
    goal: float | None = None
    flags: int = ACK
    peers: Sequence[str] = ("",)
    ports: tuple[int, ...] = OPEN_PORTS
    first_port: int = _FIRST_PORT
    many: int = MANY_FLOWS
    fresh: bool = False
    read: bool = False
    spaces: tuple[int, ...] = ()

    def flows(self, count: int) -> list[Flow]:
        """So many flows."""
        made = []
        for index, peer in enumerate(islice(cycle(self.peers), count)):
            number, port = divmod(index // len(self.peers), len(self.ports))
            made.append(Flow(peer, self.first_port + number, self.ports[port]))
        return made


def shuffled(flows: Sequence[Flow]) -> list[Flow]:
    """The flows in an order that is random and the same each time: not that in which the table got them."""
    return random.Random(len(flows)).sample(flows, len(flows))


def cases(node: CostNode, version: int, ipcache_entries: int) -> list[Case]:
    """Everything that is measured of an IP version, with an ipcache of so many entries."""
    a = ADDRESSES[version]
    remotes, worlds = a.remotes(ipcache_entries), a.worlds(_WORLD_PEERS)
    to_web = Leg("from_container", node.client, a.client, a.web)
    to_client = Leg("from_container", node.web, a.web, a.client, reply=True)
    local = ((to_web, SYN), (to_client, _SYN_ACK), (to_web, ACK))

    to_remote = Leg("from_container", node.client, a.client, a.remote)
    answer = Leg("from_overlay", node.vxlan, a.remote, a.client, reply=True, from_peer=True, vni=REMOTE_ID)
    outgoing = ((to_remote, SYN), (answer, _SYN_ACK), (to_remote, ACK))

    from_remote = Leg("from_overlay", node.vxlan, a.remote, a.web, from_peer=True, vni=REMOTE_ID)
    answered = Leg("from_container", node.web, a.web, a.remote, reply=True)
    incoming = ((from_remote, SYN), (answered, _SYN_ACK), (from_remote, ACK))

    to_world = Leg("from_container", node.client, a.client, a.world)
    translated = Leg("to_netdev", node.nic, a.client, a.world, TC_ACT_OK)
    from_world = Leg("from_netdev", node.nic, a.world, a.node, reply=True, from_peer=True)
    beyond = ((to_world, SYN), (translated, SYN), (from_world, _SYN_ACK), (to_world, ACK), (translated, ACK))
    world = Case(
        "", to_world, beyond, None, ACK, worlds, (WORLD_PORT,), _FIRST_TRANSLATED_PORT, MANY_TRANSLATED_FLOWS
    )

    denied = Leg("from_container", node.client, a.client, a.web, TC_ACT_SHOT)
    by_sender = Case("", denied, flags=SYN, ports=(CLOSED_PORT,), many=MANY_ON_ONE_PORT)
    first = Case("first packet of a flow, pod to pod on the node", to_web, (), 1000, SYN, fresh=True)
    by_receiver = replace(by_sender, ports=(CLOSED_BY_WEB_PORT,))
    return [
        Case("established, pod to pod on the node", to_web, local, 180),
        Case("established, its answers", to_client, local, 180),
        Case("established, to the tunnel", to_remote, outgoing, 150, peers=remotes),
        Case("established, from the tunnel", from_remote, incoming, 180, peers=remotes),
        first,
        replace(first, name="the same, under policies of three tiers", goal=None, spaces=TIERS),
        replace(first, name="the same, and by address", goal=None, spaces=ADDRESSES_TOO),
        replace(first, name="the same, and some in audit mode", goal=None, spaces=AUDIT_TOO),
        Case("first packet of a flow, to the tunnel", to_remote, (), None, SYN, peers=remotes, fresh=True),
        replace(by_sender, name="denied by the sender's policy", goal=125),
        replace(by_receiver, name="denied by the receiver's policy after the sender's", goal=125),
        replace(by_sender, name="denied by the sender's policy, somebody reads events", goal=1000, read=True),
        replace(world, name="established, to the world: from_container"),
        replace(world, name="established, to the world: to_netdev, masqueraded", leg=translated),
        replace(world, name="established, from the world: from_netdev, translated back", leg=from_world),
    ]
