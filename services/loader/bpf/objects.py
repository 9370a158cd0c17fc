"""Compiled objects on their way into the kernel: opened, configured, loaded, each a step of its own."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.loader.bpf.btf import Layout, TypeInformation
from services.loader.bpf.errors import (
    BpfError,
    MapMismatch,
    PrivilegeMissing,
    UnknownVariable,
    VerifierError,
)
from services.loader.bpf.maps import MapDefinition, describe
from services.loader.bpf.native import check, check_pointer, ffi, lib, said, sized

_BTF_KIND_DATASEC = 15
_RODATA = ".rodata"
_LOG_BYTES = 1 << 20
_STATISTICS_BYTES = 1 << 16
# What the verifier is to log: why it refuses (the last resort, it is slow), or what it cost.
_LOG_REASONS, _LOG_STATISTICS = 1, 4
_VERIFICATION_TIME = re.compile(r"verification time (\d+) usec")
_REFUSALS = (errno.EINVAL, errno.EACCES, errno.E2BIG, errno.ENOSPC, errno.EPERM)
CONFIG_PREFIX = "config_"


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded program. Whoever gets it owns ``fd``.

    ``tag`` is the kernel's hash of its instructions; ``instructions`` are those that the verifier left,
    ``verified_insns`` those that it went through, in ``verification_seconds`` (0: not known).
    """

    name: str
    fd: int
    id: int
    tag: str
    verified_insns: int
    instructions: int = 0
    verification_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class MapDeclaration:
    """A map as a source declares it, with the layouts of key and value where BTF knows them. ``shared``: it
    is the node's, pinned by name; others are the object's own.
    """

    name: str
    definition: MapDefinition
    key: Layout | None
    value: Layout | None
    shared: bool


@dataclass(frozen=True, slots=True)
class LoadedObject:
    """What an object gave: programs and maps (name to descriptor, the caller's to close). Seconds for the
    kernel's part.
    """

    programs: dict[str, Program]
    maps: dict[str, int]
    seconds: float

    def close(self) -> None:
        """Closes every descriptor."""
        for fd in (*(program.fd for program in self.programs.values()), *self.maps.values()):
            os.close(fd)


def program_information(fd: int) -> Any:
    """``struct bpf_prog_info`` of a program. Raises BpfError."""
    info = ffi.new("struct bpf_prog_info *")
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_prog_info"))
    check(lib.bpf_obj_get_info_by_fd(fd, info, size), "read information on a program")
    return info


def describe_program(name: str, fd: int, verification_seconds: float = 0.0) -> Program:
    """A program's kernel id, tag, size and cost of verification."""
    info = program_information(fd)
    return Program(
        name, fd, int(info.id), bytes(info.tag).hex(), int(info.verified_insns),
        int(info.xlated_prog_len) // 8, verification_seconds,
    )  # fmt: skip


def load_time(fd: int) -> float:
    """When a program was loaded, in seconds since 1970."""
    since_boot = int(program_information(fd).load_time) / 1e9
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)


def instructions(fd: int) -> int:
    """How many instructions a loaded program has, after the verifier has removed what is never reached."""
    return int(program_information(fd).xlated_prog_len) // 8


class OpenedObject:
    """An object before it is loaded. ``maps`` and ``programs`` are what it declares without what libbpf makes
    for .rodata and the like; ``constants`` its configuration, bytes by name.

    Nothing reaches the kernel before :meth:`load`, and nothing is pinned. Close it when done; what it loaded
    stays. Methods raise BpfError.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._handle = check_pointer(
            lib.bpf_object__open_file(path.encode(), sized("struct bpf_object_open_opts")), f"open {path}"
        )
        self._maps = {
            _text(lib.bpf_map__name(each)): each
            for each in self._each_map()
            if not lib.bpf_map__is_internal(each)
        }
        self._programs = {_text(lib.bpf_program__name(each)): each for each in self._each_program()}
        self._variables = {
            name.removeprefix(CONFIG_PREFIX): place
            for name, *place in _rodata_variables(self._handle)
            if name.startswith(CONFIG_PREFIX)
        }
        types = TypeInformation(lib.bpf_object__btf(self._handle))
        self.maps = {name: _declaration(name, each, types) for name, each in self._maps.items()}
        self._left_out: set[str] = set()
        self._reused: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._values: Mapping[str, bytes] = {}
        for each in self._maps.values():
            check(lib.bpf_map__set_pin_path(each, ffi.NULL), f"open {path}")

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of all its programs."""
        return tuple(self._programs)

    @property
    def constants(self) -> dict[str, int]:
        """Size of each constant, by name without prefix."""
        return {name: length for name, (_, length) in self._variables.items()}

    def close(self) -> None:
        """Lets go of it."""
        if self._handle is not None:
            lib.bpf_object__close(self._handle)
            self._handle = None

    def resize(self, name: str, max_entries: int) -> None:
        """Gives a map another size than it declares; ``maps`` follows."""
        check(lib.bpf_map__set_max_entries(self._maps[name], max_entries), f"size map {name}")
        self._sizes[name] = max_entries
        types = TypeInformation(lib.bpf_object__btf(self._handle))
        self.maps[name] = _declaration(name, self._maps[name], types, shared=self.maps[name].shared)

    def leave_out(self, names: Iterable[str]) -> None:
        """Does not load these programs and maps. Where a program still refers to such a map, the verifier
        refuses it, unless the constants show that it never gets there.
        """
        for name in names:
            if name in self._programs:
                check(lib.bpf_program__set_autoload(self._programs[name], False), f"leave out {name}")
                self._left_out.add(name)
            elif name in self._maps:
                check(lib.bpf_map__set_autocreate(self._maps[name], False), f"leave out map {name}")
                self._left_out.add(name)

    def reuse(self, name: str, fd: int) -> None:
        """Lets the programs use a map that is there. The descriptor stays the caller's."""
        check(lib.bpf_map__reuse_fd(self._maps[name], fd), f"reuse map {name}")
        self._reused[name] = fd

    def configure(self, values: Mapping[str, bytes]) -> None:
        """Sets its constants; those in ``values`` that it does not declare are other objects'.

        Raises UnknownVariable for one that it declares and ``values`` has not.
        """
        rodata = next(
            (m for m in self._each_map() if _text(lib.bpf_map__name(m)).endswith(_RODATA)),
            None,
        )
        if rodata is None:
            return
        size = ffi.new("size_t *")
        data = bytearray(ffi.buffer(lib.bpf_map__initial_value(rodata, size), size[0]))
        for name, (offset, length) in self._variables.items():
            value = values.get(name)
            if value is None:
                raise UnknownVariable(name, values, source=self.path)
            if len(value) != length:
                raise BpfError(
                    errno.EINVAL,
                    f"configure {self.path}",
                    f"{name} takes {length} bytes, got {len(value)} bytes",
                )
            data[offset : offset + length] = value
        check(
            lib.bpf_map__set_initial_value(rodata, ffi.from_buffer(data), len(data)), f"configure {self.path}"
        )
        self._values = values

    def load(self) -> LoadedObject:
        """Has the programs verified, and makes the maps that are not reused. Once.

        Raises VerifierError, PrivilegeMissing or BpfError; then nothing is left in the kernel.
        """
        logs = self._log_to(_LOG_STATISTICS, _STATISTICS_BYTES)
        started = time.perf_counter()
        result = lib.bpf_object__load(self._handle)
        seconds = time.perf_counter() - started
        if result < 0:
            self._refused(-result, said())
        said()
        programs, maps = {}, {}
        for name, program in self._programs.items():
            if name not in self._left_out:
                found = _VERIFICATION_TIME.search(_text(logs[name]))
                taken = int(found[1]) / 1e6 if found else 0.0
                programs[name] = describe_program(name, os.dup(lib.bpf_program__fd(program)), taken)
        for name, each in self._maps.items():
            if name not in self._left_out:
                maps[name] = os.dup(lib.bpf_map__fd(each))
        return LoadedObject(programs, maps, seconds)

    def _refused(self, number: int, detail: str) -> None:
        """Asks once more, now for the reasons: an object can be loaded only once."""
        if number in _REFUSALS and self._programs:
            again = OpenedObject(self.path)
            try:
                again.leave_out(self._left_out)
                for name, size in self._sizes.items():
                    again.resize(name, size)
                for name, fd in self._reused.items():
                    again.reuse(name, fd)
                if self._values:
                    again.configure(self._values)
                logs = again._log_to(_LOG_REASONS, _LOG_BYTES)
                result = lib.bpf_object__load(again._handle)
                said()
                texts = {name: _text(log) for name, log in logs.items()} if result < 0 else {}
            finally:
                again.close()
            # Programs before the one that failed have been logged too.
            for name, log in reversed(texts.items()):
                if log.strip():
                    raise VerifierError(number, name, log)
        if number == errno.EPERM:
            raise PrivilegeMissing(f"load {self.path}")
        raise BpfError(number, f"load {self.path}", detail)

    def _log_to(self, level: int, size: int) -> dict[str, Any]:
        logs = {}
        for name, program in self._programs.items():
            logs[name] = ffi.new("char[]", size)
            lib.bpf_program__set_log_buf(program, logs[name], size)
            lib.bpf_program__set_log_level(program, level)
        return logs

    def _each_map(self) -> list[Any]:
        found = []
        each = lib.bpf_object__next_map(self._handle, ffi.NULL)
        while each != ffi.NULL:
            found.append(each)
            each = lib.bpf_object__next_map(self._handle, each)
        return found

    def _each_program(self) -> list[Any]:
        found = []
        each = lib.bpf_object__next_program(self._handle, ffi.NULL)
        while each != ffi.NULL:
            found.append(each)
            each = lib.bpf_object__next_program(self._handle, each)
        return found


def load_object(
    path: str, *, map_dir: str, config: Mapping[str, bytes], map_sizes: Mapping[str, int] | None = None
) -> LoadedObject:
    """Loads one object by itself, for those who want its programs and not a node's datapath.

    ``map_dir`` is where shared maps are pinned by name, and found again; ``config`` as in
    :meth:`OpenedObject.configure`; ``map_sizes`` overrides max_entries. Raises MapMismatch, VerifierError,
    PrivilegeMissing, UnknownVariable or BpfError; then nothing new is pinned.
    """
    opened = OpenedObject(path)
    pinned: dict[str, int] = {}
    try:
        for name, size in (map_sizes or {}).items():
            if name in opened.maps:
                opened.resize(name, size)
        for name, declared in opened.maps.items():
            if not declared.shared:
                continue
            fd = lib.bpf_obj_get(f"{map_dir}/{name}".encode())
            if fd == -errno.ENOENT:
                continue
            check(fd, f"open pinned map {map_dir}/{name}")
            pinned[name] = fd
            there = describe(fd)[1]
            if there != declared.definition:
                raise MapMismatch(name, f"{map_dir}/{name}", str(there), str(declared.definition))
            opened.reuse(name, fd)
        opened.configure(config)
        loaded = opened.load()
        if any(each.shared for each in opened.maps.values()):
            os.makedirs(map_dir, mode=0o700, exist_ok=True)
        for name, fd in loaded.maps.items():
            if opened.maps[name].shared and name not in pinned:
                check(lib.bpf_obj_pin(fd, f"{map_dir}/{name}".encode()), f"pin {map_dir}/{name}")
        return loaded
    finally:
        opened.close()
        for fd in pinned.values():
            os.close(fd)


def _declaration(
    name: str, each: Any, types: TypeInformation, *, shared: bool | None = None
) -> MapDeclaration:
    definition = MapDefinition(
        lib.bpf_map__type(each),
        lib.bpf_map__key_size(each),
        lib.bpf_map__value_size(each),
        lib.bpf_map__max_entries(each),
        lib.bpf_map__map_flags(each),
    )
    return MapDeclaration(
        name,
        definition,
        types.layout(lib.bpf_map__btf_key_type_id(each)),
        types.layout(lib.bpf_map__btf_value_type_id(each)),
        lib.bpf_map__pin_path(each) != ffi.NULL if shared is None else shared,
    )


def _text(pointer: Any) -> str:
    return str(ffi.string(pointer).decode(errors="replace"))


def _rodata_variables(handle: Any) -> list[tuple[str, int, int]]:
    """(name, offset, size) of every variable in .rodata; none without that section."""
    btf = lib.bpf_object__btf(handle)
    section = lib.btf__find_by_name_kind(btf, _RODATA.encode(), _BTF_KIND_DATASEC)
    if section == -errno.ENOENT:
        return []
    check(section, f"find {_RODATA} in BTF")
    head = lib.btf__type_by_id(btf, section)
    entries = ffi.cast("struct btf_var_secinfo *", head + 1)
    found = []
    for index in range(head.info & 0xFFFF):
        entry = entries[index]
        variable = lib.btf__type_by_id(btf, entry.type)
        found.append((_text(lib.btf__name_by_offset(btf, variable.name_off)), entry.offset, entry.size))
    return found
