"""Episodes of changes and packets, given to the model and to the kernel, and what differs."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fuzz.addresses import FAMILIES
from tests.fuzz.changes import Change
from tests.fuzz.compare import DROPPED, compare, compare_flows, compare_translations
from tests.fuzz.host import MTU, Routes
from tests.fuzz.kernel import KernelNode
from tests.fuzz.model.masquerade import Breach
from tests.fuzz.model.parsing import Tuple5
from tests.fuzz.model.programs import Model
from tests.fuzz.model.steps import Decision, Input
from tests.fuzz.model.world import Node, World
from tests.fuzz.packets import PacketSource
from tests.fuzz.topology import Topology
from tests.fuzz.trial import Outcome
from tests.fuzz.variants import Variant

EPISODE = 400
_CHANGE_EVERY, _LOOK_EVERY = 25, 100

Step = Change | Input


@dataclass(slots=True)
class Mismatch:
    """Where the two differ: after the last of ``steps``. ``differences`` says how, a line each."""

    seed: int
    variant: str
    number: int
    steps: list[Step]
    decision: Decision | None
    differences: list[str]

    @property
    def kind(self) -> str:
        """What a mismatch has in common with others of the same cause, roughly."""
        last = self.steps[-1]
        first = re.sub(r"0x[0-9a-f]+|[0-9a-f]{16,}|Tuple5.*|\(\d.*\)", "…", self.differences[0])
        return f"{last.program if isinstance(last, Input) else ''}: {first}"

    @property
    def is_breach(self) -> bool:
        """Whether the kernel passed what the model drops."""
        return any(line.startswith("BREACH") for line in self.differences)


@dataclass(slots=True)
class Totals:
    """What a session did. ``outcomes`` counts decisions by program and action or reason."""

    packets: int = 0
    episodes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)


class Twin:
    """The model and the kernel, always given the same."""

    def __init__(self, node: KernelNode) -> None:
        self.node = node
        self.reset()

    def reset(self) -> None:
        """Both know nothing."""
        self.node.clear()
        # On the last packet; None if there was none, or the model could not make it.
        self.decision: Decision | None = None
        self.model = Model(World(_node_of(self.node)))
        self.model.route = Routes(self.node.devices, self.node.variant.node_families)

    def change(self, change: Change) -> None:
        """To both."""
        change.apply(self.model)
        self.node.apply(change)

    def packet(self, given: Input) -> list[str]:
        """How the kernel's decision differs from the model's."""
        ran = self.node.run(given)
        # What the programs are free to choose, and whose clock is the kernel's.
        self.model.chosen = lambda flow, place: self._chosen(ran.outcome, flow, place)
        self.model.wait = lambda ifindex: (ran.departures[0] - ran.clock[0]) / 1e9
        self.decision = None
        try:
            self.decision = self.model.run(given)
        except Breach as breach:
            return [str(breach)]
        return compare(self.node, given, ran, self.decision, self.model.reports)

    def _chosen(self, outcome: Outcome, flow: Tuple5, place: int | None) -> int | None:
        """Which port the programs gave a flow; None for none."""
        if outcome.action == DROPPED:
            return None
        if place is None:
            return self.node.translations()[0].get(flow)
        return int.from_bytes(outcome.frame[place : place + 2], "big")

    def look(self) -> list[str]:
        """How the flows and translations differ."""
        return [
            *compare_flows(self.model.conntrack, self.node.flows()),
            *compare_translations(self.model.masquerade, self.node.translations()),
        ]

    def replay(self, steps: list[Step], *, with_flows: bool) -> list[str]:
        """From nothing through the steps; the first differences."""
        self.reset()
        for step in steps:
            if isinstance(step, Input):
                found = self.packet(step)
                if found or (with_flows and (found := self.look())):
                    return found
            else:
                self.change(step)
        return []


def _node_of(node: KernelNode) -> Node:
    devices, variant = node.devices, node.variant
    families = [FAMILIES[number] for number in variant.node_families]
    return Node(
        addresses=tuple(address for family in families for address in (family.node, family.router)),
        host=devices.host, net=devices.net, vxlan=devices.vxlan, nic=devices.nic, mtu=MTU,
        endpoint_routes=variant.endpoint_routes, host_routing=variant.host_routing,
        masquerade=variant.masquerade, own={family.number: family.node for family in families},
        ports=variant.ports, sockets=variant.sockets, host_mac=devices.macs["host"],
        net_mac=devices.macs["net"],
    )  # fmt: skip


def fuzz(node: KernelNode, seed: int, packets: int, on_mismatch: Callable[[Mismatch], bool]) -> Totals:
    """Runs episodes until ``packets`` were compared. ``on_mismatch`` says whether to go on with the next."""
    totals, twin = Totals(), Twin(node)
    while totals.packets < packets:
        # Every episode has its seed, so that one can be run again by itself.
        mismatch = _episode(twin, node.variant, seed + totals.episodes, packets - totals.packets, totals)
        totals.episodes += 1
        if mismatch is not None and not on_mismatch(mismatch):
            break
    return totals


def _episode(twin: Twin, variant: Variant, seed: int, most: int, totals: Totals) -> Mismatch | None:
    pick = random.Random(seed)
    twin.reset()
    model, devices = twin.model, twin.node.devices
    topology = Topology(pick, variant, devices.endpoints)
    source = PacketSource(pick, model, variant, devices)
    steps: list[Step] = []

    def change(changes: list[Change]) -> None:
        for one in changes:
            steps.append(one)
            twin.change(one)

    change(topology.start())
    for number in range(1, min(EPISODE, most) + 1):
        if pick.random() < 1 / _CHANGE_EVERY:
            change(topology.change(model))
        given = source.next()
        steps.append(given)
        differences = twin.packet(given)
        decision = twin.decision
        totals.packets += 1
        if decision is not None:
            totals.outcomes[_outcome(given, decision)] += 1
        if not differences and (number % _LOOK_EVERY == 0 or number == EPISODE):
            differences = twin.look()
        if differences:
            return Mismatch(seed, variant.name, number, steps, decision, differences)
        if decision is not None and decision.frame is not None:
            source.follow(given, decision, decision.frame)
    return None


def _outcome(given: Input, decision: Decision) -> str:
    what = decision.reason.name if decision.reason is not None else decision.action.value
    way = f" {decision.forward.way.name.lower()}" if decision.forward is not None else ""
    is_node = given.program in ("from_netdev", "to_netdev")
    is_same = decision.frame is None or decision.frame[22:54] == given.frame[22:54]
    return f"{given.program} {what}{way}{' translated' if is_node and not is_same else ''}"
