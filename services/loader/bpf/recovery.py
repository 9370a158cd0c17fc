"""Ends what a process that died has begun: with kernel state alone, wholly before or wholly after.

Nothing here needs the objects: maps and programs are pinned, the maps know their own layouts, the kernel
knows the devices.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum

from services.loader.bpf.conversion import Conversion
from services.loader.bpf.map_plan import RING_BUFFER, conversions
from services.loader.bpf.maps import Map, MapShape, open_pinned, shape_of
from services.loader.bpf.migration import merge
from services.loader.bpf.objects import Program
from services.loader.bpf.pins import PinDirectory
from services.loader.bpf.switching import (
    Switchboard,
    close_programs,
    descriptors,
    endpoint_devices,
    open_programs,
)
from services.loader.failpoints import passed

ENDPOINT_DEVICES = "endpoint_dev"
# The second time brings what came during the first.
_REFILLS = 2


class Recovered(StrEnum):
    """What was found: nothing, something that never happened, or something that had been decided on."""

    NOTHING = "nothing"
    UNDONE = "undone"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class _Pair:
    """A map in force and the one that takes its place."""

    old: Map
    new: Map
    shape: MapShape
    key: Conversion
    value: Conversion

    def bring(self, *, overwrite: bool) -> int:
        return merge(self.old, self.new, self.key, self.value, self.shape, overwrite=overwrite)


def recover(pins: PinDirectory, board: Switchboard) -> Recovered:
    """Removes what was only prepared, and completes what was decided on. Raises BpfError or MapMismatch; then
    it can be tried again.
    """
    undone = discard(pins.pending)
    if not os.path.isdir(pins.next.path):
        return Recovered.UNDONE if undone else Recovered.NOTHING
    with ExitStack() as stack:
        pairs = _pairs(pins, stack)
        programs = open_programs(pins.next.programs, pins.programs)
        stack.callback(close_programs, programs)
        endpoints = _endpoints(pins, stack)
        if pairs and not _begun(pins, board, programs, endpoints):
            # Nobody has written the new maps yet, and the old ones went on while the loader was dead.
            for _ in range(_REFILLS):
                for pair in pairs:
                    pair.bring(overwrite=True)
        board.switch(descriptors(programs), endpoints)
        for pair in pairs:
            pair.bring(overwrite=False)
    promote(pins)
    return Recovered.COMPLETED


def discard(stage: PinDirectory) -> bool:
    """Removes what is prepared or decided on; returns whether there was something."""
    if not os.path.isdir(stage.path):
        return False
    shutil.rmtree(stage.path)
    return True


def promote(pins: PinDirectory) -> None:
    """Puts what was decided on in the place of what was in force before, pin by pin. Again is fine. Raises
    OSError.
    """
    stage = pins.next
    for name in stage.map_names():
        os.rename(stage.map_path(name), pins.map_path(name))
        passed("migrate.map_pinned")
    for name in stage.program_names():
        os.rename(stage.program_path(name), pins.program_path(name))
        passed("pin.program")
    for directory in (stage.maps, stage.programs, stage.path):
        if os.path.isdir(directory):
            os.rmdir(directory)
    passed("migrate.done")


def _pairs(pins: PinDirectory, stack: ExitStack) -> list[_Pair]:
    found = []
    for name in pins.next.map_names():
        old, new = open_pinned(pins.map_path(name), name), open_pinned(pins.next.map_path(name), name)
        for each in (old, new):
            if each is not None:
                stack.callback(each.close)
        if old is None or new is None or new.definition.type_name == RING_BUFFER:
            continue
        before, after = shape_of(old.fd), shape_of(new.fd)
        key, value = conversions(name, before, after, pins.map_path(name))
        found.append(_Pair(old, new, after, key, value))
    return found


def _endpoints(pins: PinDirectory, stack: ExitStack) -> list[int]:
    for stage in (pins.next, pins):
        table = open_pinned(stage.map_path(ENDPOINT_DEVICES), ENDPOINT_DEVICES)
        if table is not None:
            stack.callback(table.close)
            return endpoint_devices(table)
    return []


def _begun(
    pins: PinDirectory, board: Switchboard, programs: Mapping[str, Program], endpoints: list[int]
) -> bool:
    """Whether a device runs one of the new programs."""
    new = {programs[name].id for name in pins.next.program_names()}
    return not new.isdisjoint(board.running(endpoints).values())
