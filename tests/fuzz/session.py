"""Episodes of changes and packets, given to the model and to the kernel, and what differs."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fuzz.addresses import NODE4, NODE6, ROUTER4, ROUTER6, packed
from tests.fuzz.changes import Change
from tests.fuzz.compare import compare, compare_flows
from tests.fuzz.host import Routes
from tests.fuzz.kernel import MTU, KernelNode
from tests.fuzz.model.programs import Action, Decision, Input, Model
from tests.fuzz.model.world import Node, World
from tests.fuzz.packets import PacketSource
from tests.fuzz.topology import Topology, Variant

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
        devices, variant = self.node.devices, self.node.variant
        self.model = Model(
            World(
                Node(
                    addresses=tuple(packed(a) for a in (NODE4, ROUTER4, NODE6, ROUTER6)),
                    host=devices.host, net=devices.net, vxlan=devices.vxlan, nic=devices.nic, mtu=MTU,
                    endpoint_routes=variant.endpoint_routes, host_routing=variant.host_routing,
                )
            )
        )  # fmt: skip
        self.model.route = Routes(devices)

    def change(self, change: Change) -> None:
        """To both."""
        change.apply(self.model)
        self.node.apply(change)

    def packet(self, given: Input) -> tuple[Decision, list[str]]:
        """The model's decision and how the kernel's differs."""
        decision = self.model.run(given)
        return decision, compare(self.node, given, decision)

    def look(self) -> list[str]:
        """How the flows differ."""
        return compare_flows(self.model.conntrack, self.node.flows())

    def replay(self, steps: list[Step], *, with_flows: bool) -> list[str]:
        """From nothing through the steps; the first differences."""
        self.reset()
        for step in steps:
            if isinstance(step, Input):
                _, found = self.packet(step)
                if found or (with_flows and (found := self.look())):
                    return found
            else:
                self.change(step)
        return []


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
    source = PacketSource(pick, model.world, variant, devices)
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
        decision, differences = twin.packet(given)
        totals.packets += 1
        totals.outcomes[_outcome(given, decision)] += 1
        if not differences and (number % _LOOK_EVERY == 0 or number == EPISODE):
            differences = twin.look()
        if differences:
            return Mismatch(seed, variant.name, number, steps, decision, differences)
        if decision.frame is not None and decision.action is Action.PASS and given.program != "to_container":
            source.follow(given, decision.mark or 0, decision.frame)
    return None


def _outcome(given: Input, decision: Decision) -> str:
    what = decision.reason.name if decision.reason is not None else decision.action.value
    way = f" {decision.forward.way.name.lower()}" if decision.forward is not None else ""
    return f"{given.program} {what}{way}"
