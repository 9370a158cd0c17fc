"""A packet with another address and port at one end, its checksums still as right or wrong as they were."""

from __future__ import annotations

from tests.fuzz.model.parsing import ETHERNET, ICMP, ICMPV6, SCTP, TCP, UDP, Packet

_MODULUS = 0xFFFF
_CHECKSUMS = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}
_ECHO_ID = 4


class Rewriting:
    """A frame that is written to. Internet checksums are numbers modulo 65535, of which 0 has two forms.

    ``checksums`` are the places of those that may have either.
    """

    def __init__(self, frame: bytes) -> None:
        self._frame = bytearray(frame)
        self.checksums: list[int] = []

    @property
    def frame(self) -> bytes:
        """What became of it."""
        return bytes(self._frame)

    def put(self, place: int, data: bytes) -> int:
        """Writes; returns by how much the sum over the data grew. Of an even number of bytes, at an even
        place of whatever is summed.
        """
        before = self._frame[place : place + len(data)]
        self._frame[place : place + len(data)] = data
        return (_total(data) - _total(before)) % _MODULUS

    def move(self, place: int, growth: int, *, is_optional: bool = False) -> int:
        """Makes up in a checksum for what it covers having grown; returns by how much it grew itself.

        ``is_optional``: 0 says that there is none, as UDP has it.
        """
        before = int.from_bytes(self._frame[place : place + 2], "big")
        if is_optional and not before:
            return 0
        after = (before - growth) % _MODULUS
        self._frame[place : place + 2] = (after or (_MODULUS if is_optional else 0)).to_bytes(2, "big")
        if not is_optional:
            self.checksums.append(place)
        return (after - before) % _MODULUS


def _total(data: bytes | bytearray) -> int:
    return sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))


def readdressed(
    frame: bytes, packet: Packet, *, is_source: bool, address: bytes, port: int
) -> tuple[bytes, tuple[int, ...]]:
    """The frame with its source, or its destination, at ``address`` and ``port`` (of an echo the identifier).

    An error is about a packet the other way, which is changed at the same end of the flow. Returns the places
    of checksums that may have either form of 0, too.
    """
    rewriting = Rewriting(frame)
    if packet.is_error:
        _quote(rewriting, packet, is_source=is_source, address=address, port=port)
    if packet.is_error and is_source and packet.source != packet.flow.source:
        # By a router, whose own address is not the flow's.
        return rewriting.frame, tuple(rewriting.checksums)
    grown = _address(rewriting, ETHERNET, packet.family, is_source=is_source, address=address)
    if packet.is_error:
        if packet.family == 6:
            rewriting.move(packet.start + 2, grown)
    elif not packet.is_later_fragment:
        _layer4(rewriting, packet.start, packet, grown, is_source=is_source, port=port)
    return rewriting.frame, tuple(rewriting.checksums)


def _address(rewriting: Rewriting, start: int, family: int, *, is_source: bool, address: bytes) -> int:
    """In the IP header at ``start``. Returns the growth of the sum over the addresses."""
    if family == 6:
        return rewriting.put(start + (8 if is_source else 24), address)
    grown = rewriting.put(start + (12 if is_source else 16), address)
    rewriting.move(start + 10, grown)
    return grown


def _layer4(
    rewriting: Rewriting, start: int, packet: Packet, grown: int, *, is_source: bool, port: int
) -> int:
    """Returns the growth of layer 4, its checksum apart from it, and of that checksum."""
    protocol = packet.flow.protocol
    if protocol == SCTP:
        return 0
    if protocol in (ICMP, ICMPV6):
        place = start + _ECHO_ID
        # Unlike ICMPv6's, ICMP's checksum does not cover the addresses.
        covered = grown if protocol == ICMPV6 else 0
    else:
        place = start + (0 if is_source else 2)
        covered = grown
    ports = rewriting.put(place, port.to_bytes(2, "big"))
    check = start + _CHECKSUMS[protocol]
    if check + 2 > packet.end:
        return ports
    return ports + rewriting.move(check, covered + ports, is_optional=protocol == UDP)


def _quote(rewriting: Rewriting, packet: Packet, *, is_source: bool, address: bytes, port: int) -> None:
    """What an error quotes, and its own checksum for it."""
    grown = _address(rewriting, packet.quote, packet.family, is_source=not is_source, address=address)
    # In IPv4 the header's checksum, which is quoted too, makes up for the address.
    covered = grown if packet.family == 6 else 0
    covered += _layer4(rewriting, packet.quoted, packet, grown, is_source=not is_source, port=port)
    rewriting.move(packet.start + 2, covered)
