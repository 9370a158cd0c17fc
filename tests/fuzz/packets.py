"""Random packets that are worth a look: of known flows and back, in pieces, complaints, wrong ones."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.fuzz import build
from tests.fuzz.addresses import FAMILIES, PORTS, Family
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
    Tuple5,
)
from tests.fuzz.model.programs import Model
from tests.fuzz.model.steps import Decision, Input
from tests.fuzz.mutate import mutate
from tests.fuzz.places import Devices, Places
from tests.fuzz.variants import Variant

_CLIENT_PORTS = (40000, 40001, 80, 1025, 61005)
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
_PENDING, _RECENT, _CONVERSATIONS = 40, 60, 24
# The largest that BPF_PROG_TEST_RUN takes is a bit less than a page.
_BIG = (1400, 1430, 1436, 1437, 1450, 1472, 1480, 1600, 2900, 3400)
_OVERLAY = 8472
_NEIGHBOURS = ("to_container", "from_host", "to_host", "from_netdev", "to_netdev")
_LARGE = ("from_container", "to_container", "to_netdev", "from_netdev")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Two ends that talk: what a flow is to those who have it."""

    family: Family
    protocol: int
    ends: tuple[bytes, bytes]
    ports: tuple[int, int]

    @property
    def is_echo(self) -> bool:
        """ICMP or ICMPv6; the first port is its identifier."""
        return self.protocol in (ICMP, ICMPV6)


class PacketSource:
    """Makes packets up for a node in the state of ``model``, which may change in between."""

    def __init__(self, pick: random.Random, model: Model, variant: Variant, devices: Devices) -> None:
        self._pick = pick
        self._world = model.world
        self._masquerade = model.masquerade
        self._variant = variant
        self._places = Places(pick, model, variant, devices)
        self._conversations: deque[Conversation] = deque(maxlen=_CONVERSATIONS)
        self._recent: deque[bytes] = deque(maxlen=_RECENT)
        self._pending: list[Input] = []
        self._ports = (pick.sample(PORTS, 3), pick.sample(_CLIENT_PORTS, 3))

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
        return self._large(self._places.placed(frame, source, destination))

    def follow(self, given: Input, decision: Decision, frame: bytes) -> None:
        """What becomes of a packet that left its program: it may come by another, and be complained of."""
        if frame != given.frame:
            self._recent.append(frame)
        following = self._places.next(given, decision, frame)
        if following is not None and len(self._pending) < _PENDING:
            self._pending.append(following)

    def _large(self, given: Input) -> Input:
        """The packet as several segments that travel as one, if it is one that may be."""
        if len(given.frame) < 1514 or given.program not in _LARGE or self._pick.random() < 0.4:
            return given
        return replace(given, gso=self._pick.choice((500, 1380, 1448)))

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
        sport, dport = talk.ports[way], talk.ports[not way]
        # Either end of an echo may ask.
        is_reply = way != (pick.random() < 0.15)
        if talk.is_echo:
            sport = dport = talk.ports[0]
        flow = Tuple5(destination, source, talk.protocol, dport, sport)
        if flow in self._masquerade.originals and pick.random() < 0.8:
            # The other end knows the pod by the node's address.
            destination, dport = talk.family.node, self._masquerade.originals[flow]
            is_reply = is_reply or pick.random() < 0.8
        payload = bytes(pick.choice((0, 0, 1, 8, 24, 40)) if pick.random() < 0.97 else pick.choice(_BIG))
        if talk.is_echo:
            data = self._echo(talk.family, dport, payload, is_reply=is_reply)
        else:
            data = build.layer4(talk.protocol, sport, dport, pick.choice(_FLAGS), payload)
        if pick.random() < 0.08:
            return self._in_pieces(talk, source, destination, data), source, destination
        data = self._summed(source, destination, talk.protocol, data)
        return self._packet(talk.family, source, destination, talk.protocol, data, None), source, destination

    def _conversation(self) -> Conversation:
        pick = self._pick
        family = FAMILIES[pick.choice(self._variant.families)]
        local = [address for address in self._world.by_address if len(address) * 8 == family.bits]
        first = pick.choice(local) if local and pick.random() < 0.8 else pick.choice(family.everybody())
        if local and pick.random() < 0.35:
            second = pick.choice(local)
        elif pick.random() < 0.4:
            second = pick.choice(family.other[:1] * 4 + family.other)
        else:
            second = pick.choice(family.everybody() if pick.random() < 0.95 else family.strange)
        ends = (first, second) if pick.random() < 0.7 else (second, first)
        echo = ICMP if family.number == 4 else ICMPV6
        protocol = pick.choice((TCP, TCP, TCP, TCP, UDP, UDP, UDP, SCTP, echo, echo))
        # Many of one peer's: the more ports they share, the fewer are left of those to leave by.
        ports = pick.choice(self._ports[1]), pick.choice(self._ports[0][:1] * 2 + self._ports[0])
        if pick.random() < 0.04:
            # Another node's overlay to this one, or nearly.
            ends, protocol, ports = (pick.choice(family.everybody()), family.node), UDP, (ports[0], _OVERLAY)
        return Conversation(family, protocol, ends, ports)

    def _echo(self, family: Family, identifier: int, payload: bytes, *, is_reply: bool) -> bytes:
        request, reply = (8, 0) if family.number == 4 else (128, 129)
        return build.icmp(reply if is_reply else request, 0, identifier.to_bytes(2, "big") + b"\0\1", payload)

    def _summed(self, source: bytes, destination: bytes, protocol: int, data: bytes) -> bytes:
        """Layer 4 with its checksum right, as a rule; or without, or with a wrong one."""
        roll = self._pick.random()
        if roll < 0.8:
            return build.summed(source, destination, protocol, data)
        return data if roll < 0.9 else build.with_checksum(protocol, data, self._pick.randrange(1 << 16))

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
        data = self._summed(source, destination, talk.protocol, data)
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
            self._pending += [self._places.placed(frame, source, destination) for frame in frames[1:]]
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
        protocol = ICMP if family.number == 4 else ICMPV6
        message = self._summed(reporter, source, protocol, message)
        frame = self._packet(family, reporter, source, protocol, message, self._rarely_a_part())
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
        return self._places.input("from_container" if from_pod else "to_container", frame, endpoint)

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
        program = "from_container" if pick.random() < 0.6 else pick.choice(_NEIGHBOURS)
        return self._places.input(program, frame, endpoint)
