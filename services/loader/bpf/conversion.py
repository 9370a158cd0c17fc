"""From one layout of a key or value to another: which bytes go where.

Members are matched by name, in records within records and in arrays alike. A member that is new is zero, one
that is gone is dropped, a number may become wider, all may move. What is compiled is applied to thousands of
elements at once, a column at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from services.loader.bpf.btf import Array, Layout, Member, Record, Scalar

_SIGN = bytes(0 if byte < 0x80 else 0xFF for byte in range(256))
# memoryview's formats by width.
_WORDS: Final[tuple[tuple[int, Literal["Q", "I", "H", "B"]], ...]] = ((8, "Q"), (4, "I"), (2, "H"), (1, "B"))


class Incompatible(Exception):
    """One layout cannot become the other. ``field`` is its path, ``old`` and ``new`` its types in words."""

    def __init__(self, field: str, old: str, new: str) -> None:
        super().__init__(f"{field or 'it'} is {old} and would be {new}")
        self.field = field
        self.old = old
        self.new = new


@dataclass(frozen=True, slots=True)
class Move:
    """``length`` bytes from ``source`` to ``target``. With ``fill``, so many bytes behind them repeat the
    sign.
    """

    source: int
    target: int
    length: int
    fill: int = 0


@dataclass(frozen=True, slots=True)
class Conversion:
    """What makes elements of ``old_size`` bytes into elements of ``new_size``; bytes that no move writes are
    zero.
    """

    old_size: int
    new_size: int
    moves: tuple[Move, ...]

    @property
    def identical(self) -> bool:
        """Whether every byte stays where it is."""
        return self.old_size == self.new_size and self.moves == (Move(0, 0, self.old_size),)

    @property
    def appends(self) -> bool:
        """Whether it only adds behind what there is."""
        return self.moves == (Move(0, 0, self.old_size),)

    def apply(self, data: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
        """Converts elements that stand one after the other."""
        if self.identical:
            return data
        count = len(data) // self.old_size
        made = bytearray(count * self.new_size)
        if count:
            for move in self.moves:
                self._column(memoryview(data), memoryview(made), move)
        return made

    def _column(self, data: memoryview, made: memoryview, move: Move) -> None:
        done = 0
        while done < move.length:
            source, target, left = move.source + done, move.target + done, move.length - done
            places = (source, target, self.old_size, self.new_size)
            width, word = next(
                (w, f) for w, f in _WORDS if w <= left and not any(place % w for place in places)
            )
            to, of = made.cast("B").cast(word), data.cast("B").cast(word)
            to[target // width :: self.new_size // width] = of[source // width :: self.old_size // width]
            done += width
        if move.fill:
            end = move.source + move.length
            sign = bytes(data[end - 1 :: self.old_size]).translate(_SIGN)
            for at in range(move.target + move.length, move.target + move.length + move.fill):
                made[at :: self.new_size] = sign


def identity(size: int) -> Conversion:
    """Leaves elements of that size as they are."""
    return Conversion(size, size, (Move(0, 0, size),))


def compile_conversion(old: Layout, new: Layout, *, key: bool = False, lossy: bool = False) -> Conversion:
    """The conversion from one layout to another. ``key``: nothing may be lost, since keys tell elements
    apart; ``lossy``: numbers may lose their upper bytes, and keys members.

    Raises Incompatible that names the member.
    """
    moves = _moves(old, new, 0, 0, "", key and not lossy, lossy)
    return Conversion(old.size, new.size, _merged(moves))


def _moves(
    old: Layout, new: Layout, source: int, target: int, path: str, keep: bool, lossy: bool
) -> list[Move]:
    if old == new:
        return [Move(source, target, old.size)]
    if isinstance(old, Scalar) and isinstance(new, Scalar):
        return [_number(old, new, source, target, path, lossy)]
    if isinstance(old, Array) and isinstance(new, Array):
        if keep and new.count < old.count:
            raise Incompatible(path, str(old), str(new))
        made = []
        for index in range(min(old.count, new.count)):
            made += _moves(
                old.element, new.element, source + index * old.element.size,
                target + index * new.element.size, f"{path}[{index}]", keep, lossy,
            )  # fmt: skip
        return made
    if isinstance(old, Record) and isinstance(new, Record) and old.union == new.union:
        if old.union:
            return _union(old, new, source, target, path)
        return _struct(old, new, source, target, path, keep, lossy)
    raise Incompatible(path, str(old), str(new))


def _number(old: Scalar, new: Scalar, source: int, target: int, path: str, lossy: bool) -> Move:
    if not (old.integer and new.integer) or old.big_endian != new.big_endian:
        raise Incompatible(path, str(old), str(new))
    if old.size == new.size:
        return Move(source, target, old.size)
    # In network order the value's bytes stand at the other end.
    if old.big_endian or (new.size < old.size and not lossy):
        raise Incompatible(path, str(old), str(new))
    if new.size < old.size:
        return Move(source, target, new.size)
    return Move(source, target, old.size, new.size - old.size if old.signed else 0)


def _struct(
    old: Record, new: Record, source: int, target: int, path: str, keep: bool, lossy: bool
) -> list[Move]:
    made = []
    there = {_named(member): member for member in new.members}
    for member in old.members:
        name = f"{path}.{member.name}" if path else member.name
        into = there.get(_named(member))
        padding = member.name.startswith("pad")
        if into is None or (padding and member.layout != into.layout):
            # Padding is zero, whatever its size.
            if keep and not padding:
                raise Incompatible(name, str(member.layout), "no more")
            continue
        if member.bits[1] or into.bits[1]:
            # Bits are not moved one by one: they stay, or their record is another.
            raise Incompatible(name, f"{member.layout}:{member.bits[1]}", f"{into.layout}:{into.bits[1]}")
        made += _moves(
            member.layout, into.layout, source + member.offset, target + into.offset, name, keep, lossy
        )
    return made


def _named(member: Member) -> tuple[str, int]:
    # Anonymous unions have only their place to be known by.
    return (member.name, 0) if member.name else ("", member.offset)


def _union(old: Record, new: Record, source: int, target: int, path: str) -> list[Move]:
    """Which member is in it is not known: all that were there stay as they were, or none can."""
    there = {member.name: member.layout for member in new.members}
    for member in old.members:
        if there.get(member.name) != member.layout:
            raise Incompatible(
                f"{path}.{member.name}" if path else member.name,
                str(member.layout),
                str(there.get(member.name, "no more")),
            )
    return [Move(source, target, old.size)]


def _merged(moves: list[Move]) -> tuple[Move, ...]:
    made: list[Move] = []
    for move in moves:
        last = made[-1] if made else None
        if (
            last is not None
            and not last.fill
            and not move.fill
            and last.source + last.length == move.source
            and last.target + last.length == move.target
        ):
            made[-1] = Move(last.source, last.target, last.length + move.length)
        else:
            made.append(move)
    return tuple(made)
