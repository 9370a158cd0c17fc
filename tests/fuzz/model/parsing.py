"""Frames to packets: "Parsing" of the page."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.fuzz.model.reasons import Drop, Reason

ETHERNET = 14
ETH_IPV4, ETH_ARP, ETH_IPV6 = 0x0800, 0x0806, 0x86DD
ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, NO_NEXT, DESTINATION = 0, 43, 44, 51, 59, 60
MOST_EXTENSION_HEADERS = 6
ND_TYPES = (*range(130, 138), 143)

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10


@dataclass(frozen=True, slots=True)
class Tuple5:
    """Which flow a packet is of, and which way it goes.

    ``sport`` and ``dport`` of an echo are both its identifier. ``asked_by_source``: the source is who asks,
    which is only of interest in an echo.
    """

    source: bytes
    destination: bytes
    protocol: int
    sport: int
    dport: int
    asked_by_source: bool = True

    @property
    def is_echo(self) -> bool:
        """ICMP or ICMPv6, of which only echo has flows."""
        return self.protocol in (ICMP, ICMPV6)

    @property
    def is_of_one_asker(self) -> bool:
        """An echo of an address to itself: its request and its reply are flows of their own."""
        return self.is_echo and self.source == self.destination

    def turned(self) -> Tuple5:
        """The other way."""
        asked = not self.asked_by_source if self.is_echo else True
        return Tuple5(self.destination, self.source, self.protocol, self.dport, self.sport, asked)


@dataclass(frozen=True, slots=True)
class Header:
    """What is in front of layer 4, whose bytes are ``start`` to ``end`` of the frame; the rest is padding."""

    family: int
    source: bytes
    destination: bytes
    protocol: int
    hop_limit: int
    start: int
    end: int
    fragment_offset: int = 0
    more_fragments: bool = False
    fragment_key: tuple[bytes, bytes, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet that parses.

    ``source`` is who the IP header says sent it; of an error that may be a router in between. Layer 4 is in
    the bytes ``start`` to ``end`` of the frame; what an error quotes begins with its IP header at ``quote``
    and with its layer 4 at ``quoted``.
    """

    family: int
    source: bytes
    destination: bytes
    hop_limit: int
    flow: Tuple5
    start: int
    end: int
    flags: int = 0
    is_error: bool = False
    is_later_fragment: bool = False
    is_whole: bool = True
    quote: int = 0
    quoted: int = 0

    @property
    def length(self) -> int:
        """Of the IP packet in bytes, as its header has it."""
        return self.end - ETHERNET

    def to(self, destination: bytes, port: int) -> Packet:
        """The packet of the flow that ends elsewhere at its destination."""
        flow = replace(self.flow, destination=destination, dport=port)
        if flow.is_echo:
            flow = replace(flow, sport=port)
        return replace(self, destination=destination, flow=flow)

    @property
    def may_start(self) -> bool:
        """An answer without a question is none."""
        return not self.is_error and (not self.flow.is_echo or self.flow.asked_by_source)


class Fragments:
    """What first fragments left for the later ones."""

    def __init__(self) -> None:
        self._left: dict[tuple[bytes, bytes, int, int], Tuple5] = {}

    def leave(self, key: tuple[bytes, bytes, int, int], flow: Tuple5) -> None:
        """A first fragment came."""
        self._left[key] = flow

    def find(self, key: tuple[bytes, bytes, int, int]) -> Tuple5:
        """A later fragment came."""
        if key not in self._left:
            raise Drop(Reason.FRAGMENT_NOT_FOUND)
        return self._left[key]


def ether_type(frame: bytes) -> int:
    """The EtherType of a frame of at least 14 bytes."""
    return int.from_bytes(frame[12:14], "big")


def fixed_header(frame: bytes) -> Header:
    """The first step of either family, which comes before the source is looked at."""
    if ether_type(frame) == ETH_IPV4:
        return _ipv4_header(frame)
    return _ipv6_header(frame)


def addresses_only(frame: bytes) -> Header:
    """A header of which nobody wants more than its addresses; it only has to be there."""
    if ether_type(frame) == ETH_IPV4 and len(frame) >= ETHERNET + 20:
        return Header(4, frame[26:30], frame[30:34], frame[23], frame[22], 0, 0)
    if ether_type(frame) == ETH_IPV6 and len(frame) >= ETHERNET + 40:
        return Header(6, frame[22:38], frame[38:54], frame[20], frame[21], 0, 0)
    raise Drop(Reason.INVALID_PACKET)


def _ipv4_header(frame: bytes) -> Header:
    if len(frame) < ETHERNET + 20:
        raise Drop(Reason.INVALID_PACKET)
    ip = frame[ETHERNET:]
    version, header_length = ip[0] >> 4, (ip[0] & 15) * 4
    total_length = int.from_bytes(ip[2:4], "big")
    if version != 4 or header_length < 20 or total_length < header_length or total_length > len(ip):
        raise Drop(Reason.INVALID_PACKET)
    identification, fragment = int.from_bytes(ip[4:6], "big"), int.from_bytes(ip[6:8], "big")
    return Header(
        family=4, source=ip[12:16], destination=ip[16:20], protocol=ip[9], hop_limit=ip[8],
        start=ETHERNET + header_length, end=ETHERNET + total_length,
        fragment_offset=(fragment & 0x1FFF) * 8, more_fragments=bool(fragment & 0x2000),
        fragment_key=(ip[12:16], ip[16:20], ip[9], identification),
    )  # fmt: skip


def _ipv6_header(frame: bytes) -> Header:
    if len(frame) < ETHERNET + 40:
        raise Drop(Reason.INVALID_PACKET)
    ip = frame[ETHERNET:]
    payload_length = int.from_bytes(ip[4:6], "big")
    if ip[0] >> 4 != 6 or 40 + payload_length > len(ip):
        raise Drop(Reason.INVALID_PACKET)
    return Header(
        family=6, source=ip[8:24], destination=ip[24:40], protocol=ip[6], hop_limit=ip[7],
        start=ETHERNET + 40, end=ETHERNET + 40 + payload_length,
    )  # fmt: skip


def _past_extension_headers(frame: bytes, header: Header) -> Header:
    """The header with layer 4's protocol and place; of a later fragment where its bytes begin."""
    count = 0
    while header.protocol in (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, NO_NEXT, DESTINATION):
        count += 1
        rest = frame[header.start : header.end]
        kind = header.protocol
        bad = kind == NO_NEXT or count > MOST_EXTENSION_HEADERS or len(rest) < 8
        if not bad and kind == FRAGMENT:
            bad, length = header.fragment_key is not None, 8
        elif not bad:
            length = (rest[1] + 2) * 4 if kind == AUTHENTICATION else (rest[1] + 1) * 8
            bad = length > len(rest) or (kind == ROUTING and rest[2] == 0)
        if bad:
            raise Drop(Reason.INVALID_EXTENSION_HEADER)
        header = replace(header, protocol=rest[0], start=header.start + length)
        if kind == FRAGMENT:
            fields = int.from_bytes(rest[2:4], "big")
            key = (header.source, header.destination, rest[0], int.from_bytes(rest[4:8], "big"))
            header = replace(
                header, fragment_offset=fields & 0xFFF8, more_fragments=bool(fields & 1), fragment_key=key
            )
            if header.fragment_offset:
                break
    return header


def packet(frame: bytes, header: Header, fragments: Fragments) -> Packet:
    """The remaining steps."""
    if header.family == 6:
        header = _past_extension_headers(frame, header)
    if header.fragment_offset:
        assert header.fragment_key is not None
        flow = fragments.find(header.fragment_key)
        guarded = {TCP: 20, SCTP: 12}.get(flow.protocol, 0)
        if header.fragment_offset < guarded:
            raise Drop(Reason.CT_HEADER)
        return replace(_packet(header, flow), is_later_fragment=True)
    try:
        found = _layer4(header, frame[header.start : header.end])
    except Drop as drop:
        raise Drop(drop.reason, header) from None
    if header.more_fragments and not found.is_error:
        assert header.fragment_key is not None
        fragments.leave(header.fragment_key, found.flow)
    return found


def _packet(header: Header, flow: Tuple5, *, flags: int = 0) -> Packet:
    is_whole = not header.fragment_offset and not header.more_fragments
    return Packet(
        header.family, header.source, header.destination, header.hop_limit, flow, header.start, header.end,
        flags, is_whole=is_whole,
    )  # fmt: skip


def _layer4(header: Header, data: bytes) -> Packet:
    shortest = {
        TCP: 20, UDP: 8, SCTP: 12, (ICMP if header.family == 4 else ICMPV6): 8,
    }.get(header.protocol)  # fmt: skip
    if shortest is None:
        raise Drop(Reason.UNKNOWN_L4)
    if len(data) < shortest or (header.protocol == TCP and data[12] >> 4 < 5):
        raise Drop(Reason.CT_HEADER)
    if header.protocol in (ICMP, ICMPV6):
        return _icmp(header, data)
    sport, dport = int.from_bytes(data[0:2], "big"), int.from_bytes(data[2:4], "big")
    flow = Tuple5(header.source, header.destination, header.protocol, sport, dport)
    flags = data[13] if header.protocol == TCP else 0
    return _packet(header, flow, flags=flags)


def _icmp(header: Header, data: bytes) -> Packet:
    kind = data[0]
    request, reply = (8, 0) if header.family == 4 else (128, 129)
    if kind in (request, reply):
        flow = _echo(
            header.source, header.destination, header.protocol, data, asked_by_source=kind == request
        )
        return _packet(header, flow)
    if kind in ((3, 11, 12) if header.family == 4 else (1, 2, 3, 4)):
        quoted, place = _quoted(header, data[8:])
        quote = header.start + 8
        found = _packet(header, quoted.turned())
        return replace(found, is_error=True, quote=quote, quoted=quote + place)
    if header.family == 4:
        raise Drop(Reason.UNKNOWN_ICMP4)
    raise Drop(Reason.ND_IGNORED if kind in ND_TYPES else Reason.UNKNOWN_ICMP6)


def _echo(source: bytes, destination: bytes, protocol: int, data: bytes, *, asked_by_source: bool) -> Tuple5:
    identifier = int.from_bytes(data[4:6], "big")
    return Tuple5(source, destination, protocol, identifier, identifier, asked_by_source)


def _quoted(header: Header, quote: bytes) -> tuple[Tuple5, int]:
    """The flow of what an error complains about, as it went, and where layer 4 begins in the quote."""
    if header.family == 4:
        source, destination, protocol, place = _ipv4_quote(quote)
    else:
        source, destination, protocol, place = _ipv6_quote(quote)
    data = quote[place:]
    if source != header.destination:
        raise Drop(Reason.CT_HEADER)
    if protocol in (TCP, UDP, SCTP):
        sport, dport = int.from_bytes(data[0:2], "big"), int.from_bytes(data[2:4], "big")
        return Tuple5(source, destination, protocol, sport, dport), place
    if protocol != (ICMP if header.family == 4 else ICMPV6):
        raise Drop(Reason.UNKNOWN_L4)
    request, reply = (8, 0) if header.family == 4 else (128, 129)
    if data[0] not in (request, reply):
        raise Drop(Reason.UNKNOWN_ICMP4 if header.family == 4 else Reason.UNKNOWN_ICMP6)
    return _echo(source, destination, protocol, data, asked_by_source=data[0] == request), place


def _ipv4_quote(quote: bytes) -> tuple[bytes, bytes, int, int]:
    header_length = (quote[0] & 15) * 4 if quote else 0
    offset = int.from_bytes(quote[6:8], "big") & 0x1FFF
    if header_length < 20 or quote[0] >> 4 != 4 or offset or len(quote) < header_length + 8:
        raise Drop(Reason.CT_HEADER)
    return quote[12:16], quote[16:20], quote[9], header_length


def _ipv6_quote(quote: bytes) -> tuple[bytes, bytes, int, int]:
    if len(quote) < 48 or quote[0] >> 4 != 6:
        raise Drop(Reason.CT_HEADER)
    return quote[8:24], quote[24:40], quote[6], 40
