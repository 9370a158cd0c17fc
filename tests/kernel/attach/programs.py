"""The programs of bpf/attach.c, loaded as often as a test likes, each time somebody's own."""

from __future__ import annotations

import os
from pathlib import Path

from services.loader.bpf.maps import Map
from services.loader.bpf.native import check, check_pointer, ffi, lib, sized

SOURCES = Path(__file__).parent / "bpf"
PASSED, DROPPED, SEEN_BY_OTHER = range(3)


class Programs:
    """One load of the object; with ``counters`` it shares another's map, as a node's next version does."""

    def __init__(self, path: str, counters: Map | None = None) -> None:
        handle = check_pointer(
            lib.bpf_object__open_file(path.encode(), sized("struct bpf_object_open_opts")), f"open {path}"
        )
        try:
            counter_map = lib.bpf_object__next_map(handle, ffi.NULL)
            if counters is not None:
                check(lib.bpf_map__reuse_fd(counter_map, counters.fd), "reuse counters")
            check(lib.bpf_object__load(handle), f"load {path}")
            self.counters = Map("counters", os.dup(lib.bpf_map__fd(counter_map)))
            self._fds = {}
            program = lib.bpf_object__next_program(handle, ffi.NULL)
            while program != ffi.NULL:
                name = ffi.string(lib.bpf_program__name(program)).decode()
                self._fds[name] = os.dup(lib.bpf_program__fd(program))
                program = lib.bpf_object__next_program(handle, program)
        finally:
            lib.bpf_object__close(handle)

    def __getitem__(self, name: str) -> int:
        """A program's descriptor."""
        return self._fds[name]

    def count(self, which: int) -> int:
        """How many packets were counted so."""
        value = self.counters.get(which.to_bytes(4, "little"))
        assert value is not None
        return int.from_bytes(value, "little")

    def close_programs(self) -> None:
        """Lets go of the programs: those that are attached stay."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}

    def close(self) -> None:
        self.close_programs()
        self.counters.close()
