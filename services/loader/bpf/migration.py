"""Carries what a map holds over into another one, while programs write the first and later the second.

First everything is copied. Then what changed meanwhile, again and again, until that is little. When the
programs write the new map, :meth:`Migration.settle` brings what the old one got in between, and overwrites
nothing that is newer.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.loader.bpf.btf import Record, Scalar
from services.loader.bpf.conversion import Conversion
from services.loader.bpf.errors import BpfError
from services.loader.bpf.maps import Chunk, Map, MapShape

_CHUNK = 16384
# So few changes are left to settle().
_FEW = 64
_PASSES = 3
_NO_ROOM = (errno.E2BIG, errno.ENOMEM, errno.ENOSPC)


@dataclass(frozen=True, slots=True)
class Filled:
    """What a migration did: elements copied first, and in the passes after that."""

    entries: int
    caught_up: int
    passes: int


class Migration:
    """From one map into another, of whose elements ``key`` and ``value`` say how to make them.

    Both maps stay their owner's. It remembers all that it copied until :meth:`settle`. Methods raise
    BpfError.
    """

    def __init__(self, source: Map, target: Map, key: Conversion, value: Conversion) -> None:
        self.source = source
        self.target = target
        self._key = key
        self._value = value
        self._seen: list[Chunk] = []

    def fill(self) -> Filled:
        """Copies everything, then what changed meanwhile."""
        entries = 0
        for chunk in self._chunks():
            self.target.put_chunk(self._converted(chunk))
            self._seen.append(chunk)
            entries += chunk.count
        caught_up = passes = 0
        while passes < _PASSES:
            changed = self.catch_up()
            caught_up += changed
            passes += 1
            if changed <= _FEW:
                break
        return Filled(entries, caught_up, passes)

    def catch_up(self) -> int:
        """Copies what is new or other since the pass before, and removes what is gone; returns how much that
        was.
        """
        seen = list(self._chunks())
        changed = 0
        for rows in _changes(self._seen, seen):
            self.target.put_chunk(self._converted(self._chunk(rows)))
            changed += len(rows)
        for key in _gone(self._seen, seen):
            # It may only have moved further than was looked.
            if self.source.get(key) is None:
                changed += self.target.delete(bytes(self._key.apply(key)))
        self._seen = seen
        return changed

    def settle(self) -> int:
        """Brings what the source got since the last pass, now that programs write the target: what it has
        not; what it has, if nobody wrote that since it was copied; and what both got for the first time,
        since the source's is the older: there a flow began. Returns how many elements that were.
        """
        seen = list(self._chunks())
        before = {key: value for chunk in _differing(self._seen, seen) for key, value in chunk.rows()}
        changed = 0
        for rows in _changes(self._seen, seen):
            for key, value in rows:
                changed += self._settle(key, value, before.get(key))
        self._seen = []
        return changed

    def _settle(self, key: bytes, value: bytes, copied: bytes | None) -> bool:
        into, made = bytes(self._key.apply(key)), bytes(self._value.apply(value))
        if self._is_indexed:
            present = self.target.get(into)
            untouched = copied is not None and present == bytes(self._value.apply(copied))
            if untouched:
                self.target.put(into, made)
            return untouched
        if self.target.insert(into, made):
            return True
        if copied is None or self.target.get(into) == bytes(self._value.apply(copied)):
            self.target.put(into, made)
            return True
        return False

    @property
    def _is_indexed(self) -> bool:
        return self.target.definition.type_name in ("array", "percpu_array")

    def _chunks(self) -> Iterator[Chunk]:
        most = self.target.definition.max_entries
        for chunk in self.source.chunks(_CHUNK):
            yield self._within(chunk, most) if self._is_indexed else chunk

    def _within(self, chunk: Chunk, most: int) -> Chunk:
        """Of an array, the elements that the target has a place for."""
        if self.source.definition.max_entries <= most:
            return chunk
        return self._chunk([row for row in chunk.rows() if int.from_bytes(row[0], sys.byteorder) < most])

    def _chunk(self, rows: Sequence[tuple[bytes, bytes]]) -> Chunk:
        return Chunk.of(rows, self.source.definition.key_size, self.source.cell_size)

    def _converted(self, chunk: Chunk) -> Chunk:
        return Chunk(
            self._key.apply(chunk.keys),
            self._value.apply(chunk.values),
            self.target.definition.key_size,
            self.target.cell_size,
        )


def merge(
    source: Map, target: Map, key: Conversion, value: Conversion, shape: MapShape, *, overwrite: bool
) -> int:
    """Brings into ``target`` what it lacks of ``source``, without knowing what was copied before: after a
    crash. What both have is decided by the later ``expires``, if ``shape`` (the target's) has such a member;
    otherwise ``overwrite`` says whether the source's counts. Returns how many elements were written.

    Raises BpfError; a target that is full takes what it can.
    """
    expires = _expires_offset(shape)
    present = {k: v for chunk in target.chunks(_CHUNK) for k, v in chunk.rows()}
    changed = 0
    for chunk in source.chunks(_CHUNK):
        made = Chunk(
            key.apply(chunk.keys), value.apply(chunk.values), target.definition.key_size, target.cell_size
        )
        for into, row in made.rows():
            there = present.get(into)
            if there == row:
                continue
            if there is None:
                changed += _insert(target, into, row)
            elif _is_later(row, there, expires, overwrite):
                target.put(into, row)
                changed += 1
    return changed


def _insert(target: Map, key: bytes, value: bytes) -> bool:
    try:
        return target.insert(key, value)
    except BpfError as problem:
        # What would not fit was refused before; what came since then is the least of it.
        if problem.errno in _NO_ROOM:
            return False
        raise


def _is_later(ours: bytes, theirs: bytes, expires: int | None, overwrite: bool) -> bool:
    if expires is None:
        return overwrite
    mine, other = (int.from_bytes(each[expires : expires + 4], sys.byteorder) for each in (ours, theirs))
    return mine > other or (mine == other and overwrite)


def _expires_offset(shape: MapShape) -> int | None:
    if isinstance(shape.value, Record):
        for member in shape.value.members:
            if member.name == "expires" and isinstance(member.layout, Scalar) and member.layout.size == 4:
                return member.offset
    return None


# -- what differs between two dumps
#
# A map is dumped bucket by bucket: an element that comes or goes moves those behind it by one place. So
# elements are looked for in the chunk of the same number and its neighbours; one that is not found there
# counts as changed, which costs a write and is never wrong.


def _changes(before: Sequence[Chunk], after: Sequence[Chunk]) -> Iterator[list[tuple[bytes, bytes]]]:
    """The elements that are new or other, by chunk."""
    known = _Window(before)
    for index, chunk in enumerate(after):
        if index < len(before) and _equal(before[index], chunk):
            continue
        rows = [row for row in chunk.rows() if known.value(index, row[0]) != row[1]]
        if rows:
            yield rows


def _gone(before: Sequence[Chunk], after: Sequence[Chunk]) -> Iterator[bytes]:
    """The keys that are not there any more, and perhaps some that are."""
    known = _Window(after)
    for index, chunk in enumerate(before):
        if index < len(after) and _equal(chunk, after[index]):
            continue
        for key, _ in chunk.rows():
            if known.value(index, key) is None:
                yield key


def _differing(before: Sequence[Chunk], after: Sequence[Chunk]) -> Iterator[Chunk]:
    for index, chunk in enumerate(before):
        if index >= len(after) or not _equal(chunk, after[index]):
            yield chunk


def _equal(one: Chunk, other: Chunk) -> bool:
    return one.keys == other.keys and one.values == other.values


class _Window:
    """Elements by key, around a chunk's number; as few chunks at a time as that takes."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._chunks = chunks
        self._rows: dict[int, Mapping[bytes, bytes]] = {}

    def value(self, index: int, key: bytes) -> bytes | None:
        """The value of an element that is near that chunk, or None."""
        for near in (index, index - 1, index + 1):
            if 0 <= near < len(self._chunks):
                found = self._of(near).get(key)
                if found is not None:
                    return found
        return None

    def _of(self, index: int) -> Mapping[bytes, bytes]:
        if index not in self._rows:
            self._rows = {at: rows for at, rows in self._rows.items() if abs(at - index) <= 1}
            self._rows[index] = dict(self._chunks[index].rows())
        return self._rows[index]
