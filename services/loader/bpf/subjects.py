"""Subjects' rows in the kernel: in a hash, which has them all, and in an array, where programs look first.

An array's element is overwritten in place under programs that read it, so each holds two versions: the one
that is not in force is written, then one word turns to it. For every packet the policy is wholly the one
before or wholly the one after.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping

from services.loader.bpf.layout import SUBJECT, SUBJECT_VERSIONS_CODEC, SUBJECTS_MAX, SubjectRow
from services.loader.bpf.maps import Map
from services.loader.failpoints import passed

_SIZE = SUBJECT.codec().size
# A version may be written over when no program can still be reading it; they run for microseconds.
_QUARANTINE_SECONDS = 0.001


class SubjectRows:
    """Rows of the maps ``subject`` and ``subject_array``. ``changed`` is called after every change.

    Methods raise BpfError.
    """

    def __init__(
        self,
        maps: Mapping[str, Map],
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rows = maps["subject"]
        self._array = maps["subject_array"]
        self._changed = changed
        self._clock = clock
        self._turned: dict[int, float] = {}

    def align(self) -> None:
        """Makes the array say what the hash says, as after a loader that died between its writes."""
        for number, row in self.all().items():
            if number < SUBJECTS_MAX and self._in_force(number) != row.pack():
                self._turn(number, row.pack())

    def put(self, number: int, row: SubjectRow) -> None:
        """Puts a policy into force."""
        data = row.pack()
        self._rows.put(_u32(number), data)
        passed("subject.row")
        if number < SUBJECTS_MAX:
            self._turn(number, data)
            passed("subject.turned")
        self._changed()

    def get(self, number: int) -> SubjectRow | None:
        """A subject's row."""
        data = self._rows.get(_u32(number))
        return SubjectRow.unpack(data) if data is not None else None

    def all(self) -> dict[int, SubjectRow]:
        """Every subject's row."""
        return {
            int.from_bytes(key, sys.byteorder): SubjectRow.unpack(value) for key, value in self._rows.items()
        }

    def delete(self, number: int) -> bool:
        """Removes a row; returns whether it was there."""
        if number < SUBJECTS_MAX and self._in_force(number) is not None:
            self._array.put(_u32(number), SUBJECT_VERSIONS_CODEC.pack(0, bytes(2 * _SIZE)))
            self._turned.pop(number, None)
        removed = self._rows.delete(_u32(number))
        self._changed()
        return removed

    def _versions(self, number: int) -> tuple[int, bytes]:
        data = self._array.get(_u32(number))
        assert data is not None, "an array has every element"
        current, versions = SUBJECT_VERSIONS_CODEC.unpack(data)
        return int(current), bytes(versions)

    def _in_force(self, number: int) -> bytes | None:
        current, versions = self._versions(number)
        return versions[(current - 1) * _SIZE : current * _SIZE] if current else None

    def _turn(self, number: int, data: bytes) -> None:
        current, versions = self._versions(number)
        if current and versions[(current - 1) * _SIZE : current * _SIZE] == data:
            return
        wait = self._turned.get(number, 0.0) + _QUARANTINE_SECONDS - self._clock()
        if wait > 0:
            time.sleep(wait)
        following = 2 if current == 1 else 1
        versions = data + versions[_SIZE:] if following == 1 else versions[:_SIZE] + data
        # Whatever else is in these writes is there already.
        self._array.put(_u32(number), SUBJECT_VERSIONS_CODEC.pack(current, versions))
        self._array.put(_u32(number), SUBJECT_VERSIONS_CODEC.pack(following, versions))
        self._turned[number] = self._clock()


def _u32(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)
