"""Loads one compiled object: reuses pinned maps, writes configuration, has the programs verified."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.loader.bpf.errors import BpfError, MapMismatch, PrivilegeMissing, VerifierError
from services.loader.bpf.maps import MapDefinition, describe
from services.loader.bpf.native import check, check_pointer, ffi, lib, said, sized

_BTF_KIND_DATASEC = 15
_RODATA = ".rodata"
_LOG_BYTES = 1 << 20
CONFIG_PREFIX = "config_"


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded program. Whoever gets it owns ``fd``. ``tag`` is the kernel's hash of its instructions."""

    name: str
    fd: int
    id: int
    tag: str
    verified_insns: int


@dataclass(frozen=True, slots=True)
class LoadedObject:
    """What an object gave: programs and maps (name to descriptor, the caller's to close);

    Seconds for the kernel's part.
    """

    programs: dict[str, Program]
    maps: dict[str, int]
    seconds: float


def describe_program(name: str, fd: int) -> Program:
    """A program's kernel id, tag and cost of verification."""
    info = ffi.new("struct bpf_prog_info *")
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_prog_info"))
    check(lib.bpf_obj_get_info_by_fd(fd, info, size), f"read information on program {name}")
    return Program(name, fd, int(info.id), bytes(info.tag).hex(), int(info.verified_insns))


def instructions(fd: int) -> int:
    """How many instructions a loaded program has, after the verifier has removed what is never reached."""
    info = ffi.new("struct bpf_prog_info *")
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_prog_info"))
    check(lib.bpf_obj_get_info_by_fd(fd, info, size), "read information on a program")
    return int(info.xlated_prog_len) // 8


def load_object(
    path: str, *, map_dir: str, config: Mapping[str, bytes], map_sizes: Mapping[str, int] | None = None
) -> LoadedObject:
    """Loads the object at ``path``.

    ``map_dir`` is where maps are pinned by name, and found again. ``config`` gives the bytes of every
    ``config_`` constant that the object declares, without that prefix; others in it are passed over.
    ``map_sizes`` overrides max_entries.

    Raises MapMismatch, VerifierError, PrivilegeMissing or BpfError; then nothing new is pinned that was not
    there before, but for maps, which are empty.
    """
    options = sized("struct bpf_object_open_opts")
    pin_root = ffi.new("char[]", map_dir.encode())
    options.pin_root_path = pin_root
    handle = check_pointer(lib.bpf_object__open_file(path.encode(), options), f"open {path}")
    try:
        for name, bpf_map in _maps(handle):
            if map_sizes and name in map_sizes:
                check(lib.bpf_map__set_max_entries(bpf_map, map_sizes[name]), f"size map {name}")
            _check_pinned(name, bpf_map, f"{map_dir}/{name}")
        _configure(handle, path, config)
        return _load(handle, path)
    finally:
        lib.bpf_object__close(handle)


def _load(handle: Any, path: str) -> LoadedObject:
    logs = {}
    for name, program in _programs(handle):
        logs[name] = ffi.new("char[]", _LOG_BYTES)
        lib.bpf_program__set_log_buf(program, logs[name], _LOG_BYTES)
    started = time.perf_counter()
    result = lib.bpf_object__load(handle)
    seconds = time.perf_counter() - started
    if result < 0:
        _raise_load_error(
            -result, path, {name: ffi.string(log).decode(errors="replace") for name, log in logs.items()}
        )
    said()
    programs = {
        name: describe_program(name, os.dup(lib.bpf_program__fd(program)))
        for name, program in _programs(handle)
    }
    return LoadedObject(programs, {name: os.dup(lib.bpf_map__fd(m)) for name, m in _maps(handle)}, seconds)


def _raise_load_error(number: int, path: str, logs: Mapping[str, str]) -> None:
    detail = said()
    for name, log in logs.items():
        # The verifier ends with its statistics whatever it decided; only the program that failed has been
        # logged.
        if log.strip() and number in (errno.EINVAL, errno.EACCES, errno.E2BIG, errno.ENOSPC, errno.EPERM):
            raise VerifierError(number, name, log)
    if number == errno.EPERM:
        raise PrivilegeMissing(f"load {path}")
    raise BpfError(number, f"load {path}", detail)


def _programs(handle: Any) -> list[tuple[str, Any]]:
    found = []
    program = lib.bpf_object__next_program(handle, ffi.NULL)
    while program != ffi.NULL:
        found.append((ffi.string(lib.bpf_program__name(program)).decode(), program))
        program = lib.bpf_object__next_program(handle, program)
    return found


def _all_maps(handle: Any) -> list[Any]:
    found = []
    bpf_map = lib.bpf_object__next_map(handle, ffi.NULL)
    while bpf_map != ffi.NULL:
        found.append(bpf_map)
        bpf_map = lib.bpf_object__next_map(handle, bpf_map)
    return found


def _maps(handle: Any) -> list[tuple[str, Any]]:
    """The maps that the source declares; not those that libbpf makes for .rodata and the like."""
    return [
        (ffi.string(lib.bpf_map__name(m)).decode(), m)
        for m in _all_maps(handle)
        if not lib.bpf_map__is_internal(m)
    ]


def _check_pinned(name: str, bpf_map: Any, path: str) -> None:
    fd = lib.bpf_obj_get(path.encode())
    if fd == -errno.ENOENT:
        return
    check(fd, f"open pinned map {path}")
    try:
        pinned = describe(fd)[1]
    finally:
        os.close(fd)
    expected = MapDefinition(
        lib.bpf_map__type(bpf_map),
        lib.bpf_map__key_size(bpf_map),
        lib.bpf_map__value_size(bpf_map),
        lib.bpf_map__max_entries(bpf_map),
        lib.bpf_map__map_flags(bpf_map),
    )
    if pinned != expected:
        raise MapMismatch(name, path, str(pinned), str(expected))


def _configure(handle: Any, path: str, config: Mapping[str, bytes]) -> None:
    """Sets the constants where BTF says that they are in .rodata."""
    rodata = next(
        (m for m in _all_maps(handle) if ffi.string(lib.bpf_map__name(m)).decode().endswith(_RODATA)),
        None,
    )
    if rodata is None:
        return
    size = ffi.new("size_t *")
    data = bytearray(ffi.buffer(lib.bpf_map__initial_value(rodata, size), size[0]))
    for name, offset, length in _rodata_variables(handle):
        if not name.startswith(CONFIG_PREFIX):
            continue
        value = config.get(name.removeprefix(CONFIG_PREFIX))
        if value is None or len(value) != length:
            got = "nothing" if value is None else f"{len(value)} bytes"
            raise BpfError(errno.EINVAL, f"configure {path}", f"{name} takes {length} bytes, got {got}")
        data[offset : offset + length] = value
    check(lib.bpf_map__set_initial_value(rodata, ffi.from_buffer(data), len(data)), f"configure {path}")


def _rodata_variables(handle: Any) -> list[tuple[str, int, int]]:
    """(name, offset, size) of every variable in .rodata."""
    btf = lib.bpf_object__btf(handle)
    section = lib.btf__find_by_name_kind(btf, _RODATA.encode(), _BTF_KIND_DATASEC)
    check(section, f"find {_RODATA} in BTF")
    head = lib.btf__type_by_id(btf, section)
    entries = ffi.cast("struct btf_var_secinfo *", head + 1)
    found = []
    for index in range(head.info & 0xFFFF):
        entry = entries[index]
        variable = lib.btf__type_by_id(btf, entry.type)
        found.append(
            (ffi.string(lib.btf__name_by_offset(btf, variable.name_off)).decode(), entry.offset, entry.size)
        )
    return found
