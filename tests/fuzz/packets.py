"""Random packets that are worth a look: of known flows and back, in pieces, complaints, wrong ones."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.fuzz import build
from tests.fuzz.addresses import FAMILIES, Family
from tests.fuzz.build import Part
from tests.fuzz.model.parsing import (
    ACK,
    AUTHENTICATION,
    DESTINATION,
    ETHERNET,
    FIN,
    HOP_BY_HOP,
    ICMP,
    ICMPV6,
    NO_NEXT,
    ROUTING,
    RST,
    SCTP,
    SYN,
    TCP,
    UDP,
)
from tests.fuzz.model.programs import Input, mark_of
from tests.fuzz.model.world import Endpoint, World
from tests.fuzz.mutate import mutate
from tests.fuzz.topology import IDENTITIES, Variant

_PORTS = (80, 81, 443, 1024, 8080, 65535, 0)
_CLIENT_PORTS = (40000, 40001, 80)
_FLAGS = (
    SYN,
    SYN,
    SYN,
    SYN | ACK,
    SYN | ACK,
    ACK,
    ACK,
    ACK,
    FIN | ACK,
    FIN | ACK,
    RST,
    RST | ACK,
    0,
    SYN | FIN,
    0xFF,
)
_LIFETIMES = (64, 64, 64, 64, 64, 64, 255, 2, 1, 0)
_ERRORS = {4: (3, 3, 3, 11, 12, 4, 5), 6: (1, 1, 2, 3, 4, 0, 5)}
_ODD_ICMP = {
    4: (4, 5, 9, 10, 13, 15, 17, 255),
    6: (0, 5, 100, 127, 130, 131, 132, 133, 134, 136, 137, 138, 143, 255),
}
_VNIS = (*IDENTITIES, *IDENTITIES, 0, 1, 2, 6, 0xFFFFFF)
_PENDING, _RECENT, _CONVERSATIONS = 40, 60, 24
# The largest that BPF_PROG_TEST_RUN takes is a bit less than a page.
_BIG = (1400, 1430, 1436, 1437, 1450, 1472, 1480, 1600)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Two ends that talk: what a flow is to those who have it."""

    family: Family
    protocol: int
    ends: tuple[bytes, bytes]
    ports: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Devices:
    """The node's interfaces by ifindex; ``endpoints`` are for pods, whether they have one or not."""

    host: int
    net: int
    vxlan: int
    nic: int
    endpoints: tuple[int, ...]


class PacketSource:
    """Makes packets up for a node in the state of ``world``, which may change in between."""

    def __init__(self, pick: random.Random, world: World, variant: Variant, devices: Devices) -> None:
        self._pick = pick
        self._world = world
        self._variant = variant
        self._devices = devices
        self._conversations: deque[Conversation] = deque(maxlen=_CONVERSATIONS)
        self._recent: deque[bytes] = deque(maxlen=_RECENT)
        self._pending: list[Input] = []
        self._ports = (pick.sample(_PORTS, 3), pick.sample(_CLIENT_PORTS, 2))

    def next(self) -> Input:
        """A packet and where it shows up."""
        pick = self._pick
        if self._pending and pick.random() < 0.35:
            return self._pending.pop(pick.randrange(len(self._pending)))
        roll = pick.random()
        if roll < 0.015:
            return self._neighbour_request()
        if roll < 0.12 and self._recent:
            frame, source, destination = self._error()
        elif roll < 0.15:
            frame, source, destination = self._odd()
        elif roll < 0.155:
            return self._unspecified()
        else:
            frame, source, destination = self._talk()
        if pick.random() < 0.22:
            frame = mutate(pick, frame)
        self._recent.append(frame)
        return self._placed(frame, source, destination)

    def follow(self, given: Input, mark: int, frame: bytes) -> None:
        """What the stack makes of a packet that it was given: it may come to a pod, by that pod's device."""
        destination = frame[30:34] if frame[12:14] == b"\x08\x00" else frame[38:54]
        local = self._world.by_address.get(bytes(destination))
        if local is not None and len(self._pending) < _PENDING:
            self._pending.append(Input("to_container", frame, local.ifindex, given.ifindex, mark))

    # Where a packet shows up

    def _placed(self, frame: bytes, source: bytes, destination: bytes) -> Input:
        pick, world = self._pick, self._world
        sender, receiver = world.by_address.get(source), world.by_address.get(destination)
        roll = pick.random()
        if sender is not None and roll < 0.8:
            return self._input("from_container", frame, sender)
        if receiver is not None and roll < 0.95:
            program = pick.choice(
                ("to_container", "to_container", "from_overlay", "from_overlay", "from_host")
            )
            return self._input(program, frame, receiver)
        if roll < 0.95:
            return self._input(pick.choice(("from_overlay", "from_host")), frame, None)
        anybody = pick.choice((*world.devices.values(), None))
        program = pick.choice(("from_container", "to_container", "from_overlay", "from_host"))
        return self._input(program, frame, anybody)

    def _input(self, program: str, frame: bytes, endpoint: Endpoint | None) -> Input:
        pick, devices = self._pick, self._devices
        if program == "from_overlay":
            if not devices.vxlan:
                program = "from_host"
            else:
                vni = pick.choice(_VNIS) if pick.random() < 0.98 else None
                return Input(program, frame, devices.vxlan, mark=self._mark(0.1), vni=vni, vlan=self._vlan())
        if program == "from_host":
            return Input(program, frame, devices.host, self._ingress(), self._mark(0.5))
        device = endpoint.ifindex if endpoint is not None else pick.choice(devices.endpoints)
        if program == "from_container":
            return Input(program, frame, device, device, self._mark(0.1), vlan=self._vlan())
        return Input(program, frame, device, self._ingress(), self._mark(0.5))

    def _vlan(self) -> bool:
        return self._pick.random() < 0.003

    def _ingress(self) -> int:
        """Where the packet came into the stack, for what the stack sends."""
        devices = self._devices
        return self._pick.choice((0, 0, devices.nic, devices.nic, devices.vxlan, devices.endpoints[0]))

    def _mark(self, how_often: float) -> int:
        pick = self._pick
        if pick.random() >= how_often:
            return 0
        return pick.choice(
            (
                *(mark_of(identity) for identity in IDENTITIES),
                mark_of(1),
                mark_of(2),
                0x0E00,
                0x0400,
                1,
                0xFFFFFFFF,
            )
        )

    # What is in it

    def _talk(self) -> tuple[bytes, bytes, bytes]:
        """Something of a conversation, new or known, this way or that."""
        pick = self._pick
        if not self._conversations or pick.random() < 0.3:
            talk = self._conversation()
            self._conversations.append(talk)
        else:
            talk = pick.choice(self._conversations)
        way = pick.random() < 0.4
        source, destination = talk.ends[way], talk.ends[not way]
        payload = bytes(pick.choice((0, 0, 1, 8, 24, 40)) if pick.random() < 0.97 else pick.choice(_BIG))
        data = self._layer4(talk, way=way, payload=payload)
        if pick.random() < 0.08:
            return self._in_pieces(talk, source, destination, data), source, destination
        return self._packet(talk.family, source, destination, talk.protocol, data, None), source, destination

    def _conversation(self) -> Conversation:
        pick = self._pick
        family = FAMILIES[pick.choice(self._variant.families)]
        local = [address for address in self._world.by_address if len(address) * 8 == family.bits]
        first = pick.choice(local) if local and pick.random() < 0.8 else pick.choice(family.everybody())
        if local and pick.random() < 0.45:
            second = pick.choice(local)
        else:
            second = pick.choice(family.everybody() if pick.random() < 0.97 else family.strange)
        ends = (first, second) if pick.random() < 0.7 else (second, first)
        echo = ICMP if family.number == 4 else ICMPV6
        protocol = pick.choice((TCP, TCP, TCP, TCP, UDP, UDP, UDP, SCTP, echo, echo))
        return Conversation(
            family, protocol, ends, (pick.choice(self._ports[1]), pick.choice(self._ports[0]))
        )

    def _layer4(self, talk: Conversation, *, way: bool, payload: bytes) -> bytes:
        pick = self._pick
        if talk.protocol in (ICMP, ICMPV6):
            request, reply = (8, 0) if talk.protocol == ICMP else (128, 129)
            # Either end may ask.
            kind = reply if way != (pick.random() < 0.15) else request
            return build.icmp(kind, 0, talk.ports[0].to_bytes(2, "big") + b"\0\1", payload)
        sport, dport = talk.ports[way], talk.ports[not way]
        return build.layer4(talk.protocol, sport, dport, pick.choice(_FLAGS), payload)

    def _packet(
        self, family: Family, source: bytes, destination: bytes, protocol: int, data: bytes, part: Part | None
    ) -> bytes:
        """A frame with this in it, with a few options or extension headers at times."""
        pick = self._pick
        lifetime = pick.choice(_LIFETIMES)
        if family.number == 4:
            options = b"\1" * pick.choice((3, 4, 8, 40)) if pick.random() < 0.06 else b""
            frame = build.ipv4(source, destination, protocol, data, ttl=lifetime, options=options, part=part)
        else:
            before = self._extensions() if pick.random() < 0.12 else ()
            middle = (build.fragment_header(part),) if part is not None else ()
            after = self._extensions() if part is not None and not part.offset and pick.random() < 0.2 else ()
            frame = build.ipv6(
                source, destination, protocol, data, hop_limit=lifetime, extensions=before + middle + after
            )
        return frame + bytes(pick.randrange(1, 20)) if pick.random() < 0.04 else frame

    def _extensions(self) -> tuple[tuple[int, bytes], ...]:
        pick = self._pick
        makers: tuple[Callable[[], tuple[int, bytes]], ...] = (
            lambda: build.option_header(HOP_BY_HOP, pick.choice((0, 0, 1, 3))),
            lambda: build.option_header(DESTINATION, pick.choice((0, 0, 1, 3))),
            lambda: build.option_header(ROUTING, pick.choice((0, 2)), kind=pick.choice((2, 3, 4, 4, 0))),
            lambda: (AUTHENTICATION, build.authentication_header(pick.choice((1, 4, 5)))[1]),
            lambda: build.fragment_header(Part(0, False, pick.randrange(4))),
            lambda: (NO_NEXT, bytes(7)),
        )
        count = pick.choice((1, 1, 1, 2, 2, 3, 5, 6, 7))
        weights = (6, 6, 5, 4, 1, 0.3)
        return tuple(maker() for maker in pick.choices(makers, weights, k=count))

    def _in_pieces(self, talk: Conversation, source: bytes, destination: bytes, data: bytes) -> bytes:
        """One fragment of the datagram; the others wait for their turn, which comes in any order."""
        pick = self._pick
        data += bytes(pick.choice((8, 16, 40)))
        first = 8 * pick.randrange(1, max(2, len(data) // 8))
        places = [0, first] if len(data) - first <= 8 or pick.random() < 0.5 else [0, first, first + 8]
        if pick.random() < 0.15:
            places.append(pick.choice((8, 16, 24)))  # over what was there
        identification = pick.randrange(4)
        frames = []
        for place in places:
            end = min((other for other in places if other > place), default=len(data))
            part = Part(place, end < len(data), identification)
            frames.append(
                self._packet(talk.family, source, destination, talk.protocol, data[place:end], part)
            )
        if pick.random() < 0.3:
            pick.shuffle(frames)
        if len(self._pending) < _PENDING:
            self._pending += [self._placed(frame, source, destination) for frame in frames[1:]]
        return frames[0]

    def _error(self) -> tuple[bytes, bytes, bytes]:
        """A complaint about a packet of late, by whom it was for or by somebody on its way."""
        pick = self._pick
        quoted = pick.choice(self._recent)
        family = FAMILIES[6 if quoted[12:14] == b"\x86\xdd" else 4]
        inner = quoted[ETHERNET:]
        source, destination = (
            (inner[8:24], inner[24:40]) if family.number == 6 else (inner[12:16], inner[16:20])
        )
        if len(destination) * 8 != family.bits:
            return self._odd()
        inner = inner[: pick.choice((28, 48, 64, 200, 200, pick.randrange(70)))]
        reporter = destination if pick.random() < 0.6 else pick.choice(family.everybody())
        if pick.random() < 0.05:
            source = pick.choice(family.everybody())
        message = build.icmp(pick.choice(_ERRORS[family.number]), pick.randrange(5), bytes(4), inner)
        frame = self._packet(
            family, reporter, source, ICMP if family.number == 4 else ICMPV6, message, self._rarely_a_part()
        )
        return frame, reporter, source

    def _rarely_a_part(self) -> Part | None:
        return Part(0, True, self._pick.randrange(4)) if self._pick.random() < 0.02 else None

    def _odd(self) -> tuple[bytes, bytes, bytes]:
        """Protocols and types that the programs do not know, or know as something else than a flow's."""
        pick = self._pick
        talk = self._conversation()
        source, destination = talk.ends
        if pick.random() < 0.5:
            protocol, data = pick.choice((0, 2, 4, 41, 47, 50, 89, 255)), bytes(32)
        else:
            protocol = ICMP if (talk.family.number == 4) != (pick.random() < 0.1) else ICMPV6
            data = build.icmp(pick.choice(_ODD_ICMP[talk.family.number]), 0, bytes(4), bytes(24))
        return self._packet(talk.family, source, destination, protocol, data, None), source, destination

    def _unspecified(self) -> Input:
        """From or to no address, which is what an endpoint has of a family that it does not have."""
        pick = self._pick
        family = FAMILIES[pick.choice(self._variant.families)]
        ends = [bytes(family.bits // 8), pick.choice(family.everybody())]
        from_pod = pick.random() < 0.5
        source, destination = ends if from_pod else reversed(ends)
        data = build.layer4(UDP, self._ports[1][0], self._ports[0][0], 0, b"")
        frame = self._packet(family, source, destination, UDP, data, None)
        endpoint = pick.choice([*self._world.devices.values(), None])
        return self._input("from_container" if from_pod else "to_container", frame, endpoint)

    def _neighbour_request(self) -> Input:
        """ARP or a solicitation, from a pod or to it."""
        pick = self._pick
        endpoint = pick.choice([*self._world.devices.values()]) if self._world.devices else None
        family = FAMILIES[pick.choice(self._variant.families)]
        own = None
        if endpoint is not None:
            own = endpoint.ipv4 if family.number == 4 else endpoint.ipv6
        source = (
            own if own is not None and pick.random() < 0.8 else pick.choice(family.local + family.strange)
        )
        target = pick.choice((family.router, *family.everybody(), own or source))
        mac = endpoint.pod_mac if endpoint is not None else bytes(6)
        if family.number == 4:
            frame = build.arp(1 if pick.random() < 0.85 else 2, mac, source, target)
        else:
            frame = build.solicitation(source, target, mac, with_option=pick.random() < 0.8)
        if pick.random() < 0.15:
            frame = mutate(pick, frame)
        return self._input("from_container" if pick.random() < 0.8 else "to_container", frame, endpoint)

    def large(self, given: Input) -> Input:
        """The packet as one of several segments that travel as one."""
        return replace(given, gso=self._pick.choice((500, 1380, 1448)))
