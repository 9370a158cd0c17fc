"""Where packets show up: at which program, on which device, marked as what."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.fuzz.model.programs import Model
from tests.fuzz.model.steps import MARK_OVERLAY, Action, Decision, Input, Way, mark_of
from tests.fuzz.model.world import Endpoint
from tests.fuzz.topology import IDENTITIES, NUMBERS
from tests.fuzz.variants import Variant

_VNIS = (*IDENTITIES, *IDENTITIES, 0, 1, 2, 6, 9, *NUMBERS)
_MARKS = (
    *(mark_of(identity) for identity in (*IDENTITIES, 1, 2, *NUMBERS)),
    0x0400,
    MARK_OVERLAY,
    1,
    0xFFFFFFFF,
)
# By who sends and who receives: local endpoint, node, or anybody else; in the order in which they apply.
_FROM_ENDPOINT = ["from_container"] * 7 + ["to_netdev"] * 2
_TO_ENDPOINT = ["to_container", "to_container", "from_overlay", "from_overlay", "from_host", "from_netdev"]
_FROM_NODE = ["from_host", "to_netdev", "to_netdev", "to_container", "to_overlay"]
_TO_NODE = ["from_netdev"] * 3 + ["to_host"] * 2 + ["from_overlay", "from_container"]
_ANY = ["from_container", "to_container", "from_overlay", "to_overlay", "from_host", "to_host", "from_netdev"]
_ANY += ["to_netdev"]


@dataclass(frozen=True, slots=True)
class Devices:
    """The node's interfaces by ifindex; ``endpoints`` are for pods, whether they have one or not.

    ``macs`` are those of "host" and "net".
    """

    host: int
    net: int
    vxlan: int
    nic: int
    endpoints: tuple[int, ...]
    macs: dict[str, bytes] = field(default_factory=dict)


class Places:
    """Gives packets of a node in the state of ``model`` their places."""

    def __init__(self, pick: random.Random, model: Model, variant: Variant, devices: Devices) -> None:
        self._pick = pick
        self._world = model.world
        self._route: Callable[[bytes], int] = model.route
        self._variant = variant
        self._devices = devices

    def placed(self, frame: bytes, source: bytes, destination: bytes) -> Input:
        """Where a packet between these two may come by, most of the time."""
        pick, world = self._pick, self._world
        sender, receiver = world.by_address.get(source), world.by_address.get(destination)
        roll = pick.random()
        if roll > 0.95:
            anybody = pick.choice((*world.devices.values(), None))
            return self.input(pick.choice(_ANY), frame, anybody)
        if sender is not None and roll < 0.8:
            return self.input(pick.choice(_FROM_ENDPOINT), frame, sender)
        if receiver is not None:
            programs = _TO_ENDPOINT
        elif destination in world.node.addresses:
            programs = _TO_NODE
        elif source in world.node.addresses:
            programs = _FROM_NODE
        else:
            programs = _ANY
        return self.input(pick.choice(programs), frame, receiver)

    def input(self, program: str, frame: bytes, endpoint: Endpoint | None) -> Input:
        """The packet at that program, on that endpoint's device if it is a pod's; or at another program if
        the node does not have this one.
        """
        pick, devices = self._pick, self._devices
        if not devices.vxlan:
            program = {"from_overlay": "from_netdev", "to_overlay": "to_netdev"}.get(program, program)
        if program in ("from_overlay", "to_overlay"):
            vni = pick.choice(_VNIS) if pick.random() < 0.98 else None
            is_summed = program == "from_overlay" and pick.random() < 0.5
            return Input(
                program, frame, devices.vxlan, mark=self._mark(0.1), vni=vni,
                vlan=pick.random() < 0.003, queue=self._queue(), is_summed=is_summed,
            )  # fmt: skip
        if program in ("from_host", "to_host"):
            ingress = self._ingress() if program == "from_host" else devices.host
            return Input(program, frame, devices.host, ingress, self._mark(0.5), queue=self._queue())
        if program == "from_netdev":
            return Input(
                program, frame, devices.nic, devices.nic, self._mark(0.1), queue=self._queue(),
                is_summed=pick.random() < 0.5,
            )  # fmt: skip
        if program == "to_netdev":
            return Input(program, frame, devices.nic, self._ingress(), self._mark(0.3), queue=self._queue())
        device = endpoint.ifindex if endpoint is not None else pick.choice(devices.endpoints)
        if program == "from_container":
            vlan, queue = pick.random() < 0.003, self._queue()
            return Input(program, frame, device, device, self._mark(0.1), vlan=vlan, queue=queue)
        return Input(program, frame, device, self._ingress(), self._mark(0.5), queue=self._queue())

    def next(self, given: Input, decision: Decision, frame: bytes) -> Input | None:
        """Where a packet comes by after it has left its program; None for nowhere, or for a pod."""
        devices, forward, mark = self._devices, decision.forward, decision.mark or 0
        at = replace(given, frame=frame, mark=mark, vlan=False, is_summed=False, queue=decision.queue or 0)
        if forward is not None:
            if forward.way is Way.NEIGHBOUR:
                return replace(at, program="to_netdev", ifindex=forward.ifindex)
            if forward.ifindex == devices.vxlan and forward.way is Way.EGRESS:
                return replace(at, program="to_overlay", ifindex=forward.ifindex, vni=forward.vni)
            if forward.ifindex == devices.net and forward.way is Way.EGRESS:
                return replace(at, program="to_host", ifindex=devices.host, ingress=devices.host, vni=None)
            if forward.way is Way.EGRESS:
                return replace(at, program="to_container", ifindex=forward.ifindex, vni=None)
            return None
        is_at_stack = given.program in ("from_container", "from_overlay", "from_netdev", "to_host")
        if decision.action is not Action.PASS or not is_at_stack:
            return None
        at = replace(at, vni=None, gso=0)
        destination = bytes(frame[30:34] if frame[12:14] == b"\x08\x00" else frame[38:54])
        local = self._world.by_address.get(destination)
        if local is not None:
            return replace(at, program="to_container", ifindex=local.ifindex)
        routed = self._route(destination) if len(destination) in (4, 16) else 0
        program = {devices.nic: "to_netdev", devices.host: "from_host"}.get(routed)
        return replace(at, program=program, ifindex=routed) if program is not None else None

    def _ingress(self) -> int:
        """Where the packet came into the stack, for what the stack sends."""
        devices = self._devices
        return self._pick.choice((0, 0, devices.nic, devices.nic, devices.vxlan, devices.endpoints[0]))

    def _queue(self) -> int:
        """The endpoint that is in the queue mapping."""
        devices = self._world.devices
        return self._pick.choice([*devices]) if devices and self._pick.random() < 0.1 else 0

    def _mark(self, how_often: float) -> int:
        pick = self._pick
        return pick.choice(_MARKS) if pick.random() < how_often else 0
