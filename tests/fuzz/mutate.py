"""Right frames made wrong: bits, lengths, headers, padding."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.fuzz.model.parsing import ETH_IPV4, ETH_IPV6, ETHERNET

# Where decisions are made of: the headers up to the quote of an ICMP error.
_HEADERS = 110
_NEXT_HEADERS = (0, 1, 4, 6, 17, 43, 44, 47, 50, 51, 58, 59, 60, 132, 135, 255)
_ETHER_TYPES = (0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8, 0x0026, 0x8847, 0xFFFF)

Mutator = Callable[[random.Random, bytearray], None]


def mutate(source: random.Random, frame: bytes) -> bytes:
    """The frame after one to three mutations; at least 14 bytes stay."""
    changed = bytearray(frame)
    for mutator in source.choices(_MUTATORS, _WEIGHTS, k=source.choice((1, 1, 1, 2, 3))):
        mutator(source, changed)
    return bytes(changed)


def _flip_bit(source: random.Random, frame: bytearray) -> None:
    place = source.randrange(12, min(len(frame), _HEADERS))
    frame[place] ^= 1 << source.randrange(8)


def _set_byte(source: random.Random, frame: bytearray) -> None:
    place = source.randrange(12, min(len(frame), _HEADERS))
    frame[place] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))


def _truncate(source: random.Random, frame: bytearray) -> None:
    del frame[source.randrange(ETHERNET, len(frame) + 1) :]


def _pad(source: random.Random, frame: bytearray) -> None:
    frame += source.randbytes(source.randrange(1, 40))


def _length(source: random.Random, frame: bytearray) -> None:
    """The IP header's length field: off by little, or anything."""
    place = 16 if frame[12:14] == ETH_IPV4.to_bytes(2, "big") else 18
    if len(frame) >= place + 2:
        right = int.from_bytes(frame[place : place + 2], "big")
        value = source.choice(
            (right - 1, right + 1, right - 8, right + 8, 0, 20, 0xFFFF, source.randrange(1 << 16))
        )
        frame[place : place + 2] = (value & 0xFFFF).to_bytes(2, "big")


def _header_length(source: random.Random, frame: bytearray) -> None:
    frame[14 if len(frame) > 14 else 0] = source.randrange(256)


def _fragment_field(source: random.Random, frame: bytearray) -> None:
    if len(frame) >= 22 and frame[12:14] == ETH_IPV4.to_bytes(2, "big"):
        value = source.choice((0x2000, 0x2001, 1, 2, 3, 0x1FFF, 0x3FFF, 0x8000, source.randrange(1 << 16)))
        frame[20:22] = value.to_bytes(2, "big")


def _protocol(source: random.Random, frame: bytearray) -> None:
    place = 23 if frame[12:14] == ETH_IPV4.to_bytes(2, "big") else 20
    if len(frame) > place:
        frame[place] = source.choice(_NEXT_HEADERS)


def _ether_type(source: random.Random, frame: bytearray) -> None:
    frame[12:14] = source.choice(_ETHER_TYPES).to_bytes(2, "big")


def _data_offset(source: random.Random, frame: bytearray) -> None:
    """TCP's, where there are neither options nor extension headers."""
    place = 46 if frame[12:14] == ETH_IPV4.to_bytes(2, "big") else 66
    if len(frame) > place:
        frame[place] = source.randrange(16) << 4


def _doubled(source: random.Random, frame: bytearray) -> None:
    """Eight bytes twice: of extension headers, a header twice."""
    if len(frame) >= ETHERNET + 48:
        place = ETHERNET + 40 + 8 * source.randrange(0, min(4, (len(frame) - ETHERNET - 40) // 8))
        frame[place:place] = frame[place : place + 8]
        _grown(frame, 8)


def _swapped(source: random.Random, frame: bytearray) -> None:
    """Two blocks of eight bytes in the other order."""
    if len(frame) >= ETHERNET + 56:
        place = ETHERNET + 40 + 8 * source.randrange(0, (min(len(frame), 120) - ETHERNET - 48) // 8)
        first, second = frame[place : place + 8], frame[place + 8 : place + 16]
        frame[place : place + 16] = second + first


def _grown(frame: bytearray, size: int) -> None:
    if frame[12:14] == ETH_IPV6.to_bytes(2, "big"):
        value = int.from_bytes(frame[18:20], "big") + size
        frame[18:20] = (value & 0xFFFF).to_bytes(2, "big")


_WEIGHTED: tuple[tuple[int, Mutator], ...] = (
    (8, _flip_bit), (4, _set_byte), (5, _truncate), (3, _pad), (4, _length), (2, _header_length),
    (3, _fragment_field), (3, _protocol), (1, _ether_type), (1, _data_offset), (3, _doubled), (2, _swapped),
)  # fmt: skip
_WEIGHTS = [weight for weight, _ in _WEIGHTED]
_MUTATORS = [mutator for _, mutator in _WEIGHTED]
