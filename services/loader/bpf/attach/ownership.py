"""Which programs on a device are this node's: nobody else's is ever replaced or removed."""

from __future__ import annotations

import os
from collections.abc import Iterable

from services.loader.bpf.attach.declarations import open_pin, program_info, program_maps
from services.loader.bpf.errors import BpfError
from services.loader.bpf.maps import describe
from services.loader.bpf.native import ffi, lib, said
from services.loader.bpf.pins import PinDirectory


class Ownership:
    """A program is the node's if it uses one of its maps, or is pinned for it. Names and tags do not tell:
    those of another node are the same.

    It remembers what it has judged: make one for each round of work.
    """

    def __init__(self, maps: Iterable[int], programs: Iterable[int] = ()) -> None:
        self._maps = frozenset(maps)
        self._programs = frozenset(programs)
        self._judged: dict[int, tuple[bool, str]] = {}

    @classmethod
    def of_pins(cls, pins: PinDirectory) -> Ownership:
        """What a node has pinned, half-made and superseded maps and programs included."""
        maps: set[int] = set()
        programs: set[int] = set()
        for directory in (pins.path, os.path.join(pins.path, "pending"), os.path.join(pins.path, "next")):
            for fd in _pinned(os.path.join(directory, "maps")):
                maps.add(describe(fd)[0])
                os.close(fd)
            for fd in _pinned(os.path.join(directory, "progs")):
                programs.add(int(program_info(fd).id))
                maps |= program_maps(fd)
                os.close(fd)
        return cls(maps, programs)

    @classmethod
    def of_programs(cls, descriptors: Iterable[int]) -> Ownership:
        """The node of which these programs are."""
        return cls({map_id for fd in set(descriptors) for map_id in program_maps(fd)})

    def owns(self, program: int) -> bool:
        """Whether a program (by the kernel's id) is the node's."""
        return self._judge(program)[0]

    def name(self, program: int) -> str:
        """A program's name in the kernel, at most 15 characters; "" for one that is gone."""
        return self._judge(program)[1]

    def _judge(self, program: int) -> tuple[bool, str]:
        if program not in self._judged:
            self._judged[program] = self._look(program)
        return self._judged[program]

    def _look(self, program: int) -> tuple[bool, str]:
        fd = lib.bpf_prog_get_fd_by_id(program)
        said()
        if fd < 0:
            return False, ""
        try:
            ours = program in self._programs or not self._maps.isdisjoint(program_maps(fd))
            return ours, program_name(fd)
        except BpfError:
            return False, ""
        finally:
            os.close(fd)


def program_name(fd: int) -> str:
    """A loaded program's name in the kernel, at most 15 characters."""
    return str(ffi.string(program_info(fd).name).decode(errors="replace"))


def _pinned(directory: str) -> Iterable[int]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        fd = open_pin(os.path.join(directory, name))
        if fd is not None:
            yield fd
