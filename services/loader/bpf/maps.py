"""One BPF map: bytes in, bytes out, in batches where the kernel has them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from services.loader.bpf.btf import Layout, kernel_type_information
from services.loader.bpf.errors import BpfError
from services.loader.bpf.native import check, ffi, lib, said, sized

# enum bpf_map_type
_TYPE_NAMES = {
    1: "hash", 2: "array", 3: "prog_array", 5: "percpu_hash", 6: "percpu_array", 9: "lru_hash",
    10: "lru_percpu_hash", 11: "lpm_trie", 27: "ringbuf",
}  # fmt: skip
_PER_CPU = ("percpu_hash", "percpu_array", "lru_percpu_hash")

_BATCH = 4096
_NOEXIST = 1  # BPF_NOEXIST
# The kernel's own, not in errno: what an operation says that a map type does not have.
_ENOTSUPP = 524
_NO_BATCH = (errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP)


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """What makes two maps interchangeable. Sizes in bytes."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int

    @property
    def per_cpu(self) -> bool:
        """Whether each CPU has a value of its own."""
        return self.type_name in _PER_CPU

    @property
    def type_name(self) -> str:
        """The type as bpftool calls it."""
        return _TYPE_NAMES.get(self.type, f"type {self.type}")

    def __str__(self) -> str:
        return (
            f"{self.type_name} key {self.key_size} value {self.value_size} max_entries {self.max_entries} "
            f"flags {self.flags:#x}"
        )


def _information(fd: int) -> Any:
    info = ffi.new("struct bpf_map_info *")
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_map_info"))
    check(lib.bpf_obj_get_info_by_fd(fd, info, size), "read map information")
    return info


def describe(fd: int) -> tuple[int, MapDefinition]:
    """A map's kernel id and definition."""
    info = _information(fd)
    return int(info.id), MapDefinition(
        info.type, info.key_size, info.value_size, info.max_entries, info.map_flags
    )


@dataclass(frozen=True, slots=True)
class Chunk:
    """Elements of a map, keys and values each one after the other."""

    keys: bytes | bytearray | memoryview
    values: bytes | bytearray | memoryview
    key_size: int
    value_size: int

    @classmethod
    def of(cls, rows: Sequence[tuple[bytes, bytes]], key_size: int, value_size: int) -> Chunk:
        """These elements."""
        keys, values = (b"".join(row[part] for row in rows) for part in (0, 1))
        return cls(keys, values, key_size, value_size)

    @property
    def count(self) -> int:
        """Elements."""
        return len(self.keys) // self.key_size

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of each."""
        keys, values, of_key, of_value = bytes(self.keys), bytes(self.values), self.key_size, self.value_size
        return zip(
            (keys[at : at + of_key] for at in range(0, len(keys), of_key)),
            (values[at : at + of_value] for at in range(0, len(values), of_value)),
            strict=True,
        )


@dataclass(frozen=True, slots=True)
class MapShape:
    """A map in the kernel: its definition, and the layouts of key and value where it came with BTF."""

    definition: MapDefinition
    key: Layout | None = None
    value: Layout | None = None


def shape_of(fd: int) -> MapShape:
    """A map's shape. Raises BpfError."""
    info = _information(fd)
    definition = describe(fd)[1]
    if not info.btf_id:
        return MapShape(definition)
    with kernel_type_information(info.btf_id) as types:
        return MapShape(definition, types.layout(info.btf_key_type_id), types.layout(info.btf_value_type_id))


def open_pinned(path: str, name: str) -> Map | None:
    """The map that is pinned there, or None. Raises BpfError."""
    fd = lib.bpf_obj_get(path.encode())
    if fd == -errno.ENOENT:
        said()
        return None
    return Map(name, check(fd, f"open pinned map {path}"))


def charged_bytes(fd: int) -> int:
    """What the kernel charges for a map or a program, in bytes."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as table:
        for line in table:
            if line.startswith("memlock:"):
                return int(line.split()[1])
    return 0


class Map:
    """An open map. Owns ``fd``. Methods raise BpfError that names the map; any thread may call them.

    ``cell_size`` is how many bytes a value has outside the kernel: of a per-CPU map one for each possible
    CPU, each of a multiple of 8 bytes.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.id, self.definition = describe(fd)
        self.cell_size = self.definition.value_size
        if self.definition.per_cpu:
            self.cell_size = (self.cell_size + 7) // 8 * 8 * int(lib.libbpf_num_possible_cpus())

    def close(self) -> None:
        """Closes the descriptor; the map lives on in its pin and programs."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def get(self, key: bytes) -> bytes | None:
        """The value at ``key``, or None."""
        value = ffi.new("char[]", self.cell_size)
        result = lib.bpf_map_lookup_elem(self.fd, ffi.from_buffer(key), value)
        if result == -errno.ENOENT:
            return None
        check(result, f"read map {self.name}")
        return bytes(ffi.buffer(value))

    def put(self, key: bytes, value: bytes) -> None:
        """Adds or replaces one element. A full map is E2BIG."""
        result = lib.bpf_map_update_elem(self.fd, ffi.from_buffer(key), ffi.from_buffer(value), 0)
        check(result, f"write map {self.name}")

    def delete(self, key: bytes) -> bool:
        """Removes one element. Returns whether it was there."""
        result = lib.bpf_map_delete_elem(self.fd, ffi.from_buffer(key))
        if result == -errno.ENOENT:
            return False
        check(result, f"delete from map {self.name}")
        return True

    def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Adds or replaces elements, in order; of an error's sequence the first ones may be written."""
        if len(items) < 2:
            for key, value in items:
                self.put(key, value)
            return
        keys = ffi.from_buffer(b"".join(key for key, _ in items))
        values = ffi.from_buffer(b"".join(value for _, value in items))
        count = ffi.new("__u32 *", len(items))
        result = lib.bpf_map_update_batch(self.fd, keys, values, count, sized("struct bpf_map_batch_opts"))
        if -result in _NO_BATCH and count[0] in (0, len(items)):
            said()
            for key, value in items:
                self.put(key, value)
            return
        check(result, f"write {len(items)} elements of map {self.name}")

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """Removes elements, passing over those that are not there. Returns how many were."""
        removed = done = 0
        options = sized("struct bpf_map_batch_opts")
        while len(keys) - done > 1:
            left = b"".join(keys[done:])
            count = ffi.new("__u32 *", len(keys) - done)
            result = lib.bpf_map_delete_batch(self.fd, ffi.from_buffer(left), count, options)
            if result == 0:
                return removed + len(keys) - done
            if result != -errno.ENOENT:
                if -result not in _NO_BATCH:
                    check(result, f"delete from map {self.name}")
                break
            removed += int(count[0])
            done += int(count[0]) + 1
        said()
        return removed + sum(self.delete(key) for key in keys[done:])

    def insert(self, key: bytes, value: bytes) -> bool:
        """Adds an element; returns whether it was not there before, else it stays as it is."""
        result = lib.bpf_map_update_elem(self.fd, ffi.from_buffer(key), ffi.from_buffer(value), _NOEXIST)
        if result == -errno.EEXIST:
            return False
        check(result, f"write map {self.name}")
        return True

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every element once; those that come or go meanwhile may be among them or not."""
        yield from self.items_of(self.definition.value_size)

    def items_of(self, value_size: int) -> Iterator[tuple[bytes, bytes]]:
        """As :meth:`items` for a map whose values are larger outside the kernel (per-CPU ones)."""
        for chunk in self._chunks(value_size, _BATCH):
            yield from chunk.rows()

    def chunks(self, most: int = _BATCH) -> Iterator[Chunk]:
        """What it holds, as :meth:`items`, about so many elements at once; values of ``cell_size``."""
        return self._chunks(self.cell_size, most)

    def put_chunk(self, chunk: Chunk) -> None:
        """Adds or replaces elements; of an error's chunk the first ones may be written."""
        if not chunk.count:
            return
        count = ffi.new("__u32 *", chunk.count)
        keys, values = ffi.from_buffer(chunk.keys), ffi.from_buffer(chunk.values)
        result = lib.bpf_map_update_batch(self.fd, keys, values, count, sized("struct bpf_map_batch_opts"))
        if -result in _NO_BATCH and count[0] in (0, chunk.count):
            said()
            for key, value in chunk.rows():
                self.put(key, value)
            return
        check(result, f"write {chunk.count} elements of map {self.name}")

    def _chunks(self, value_size: int, most: int) -> Iterator[Chunk]:
        key_size = self.definition.key_size
        room = min(most, self.definition.max_entries)
        previous: Any = ffi.NULL
        tokens = [ffi.new("char[]", max(key_size, 4)) for _ in range(2)]
        turn = 0
        while True:
            keys, values = bytearray(room * key_size), bytearray(room * value_size)
            count = ffi.new("__u32 *", room)
            result = lib.bpf_map_lookup_batch(
                self.fd, previous, tokens[turn], ffi.from_buffer(keys), ffi.from_buffer(values), count,
                sized("struct bpf_map_batch_opts"),
            )  # fmt: skip
            if result == -errno.ENOSPC:
                # One bucket alone holds more than the chunk.
                room *= 2
                continue
            if -result in _NO_BATCH and previous == ffi.NULL:
                said()
                rows = list(self._items_one_by_one(value_size))
                yield Chunk.of(rows, key_size, value_size)
                return
            if result not in (0, -errno.ENOENT):
                check(result, f"read map {self.name}")
            found = int(count[0])
            del keys[found * key_size :], values[found * value_size :]
            yield Chunk(keys, values, key_size, value_size)
            if result:
                return
            previous, turn = tokens[turn], 1 - turn

    def _items_one_by_one(self, value_size: int) -> Iterator[tuple[bytes, bytes]]:
        key_size = self.definition.key_size
        key, following, value = (
            ffi.new("char[]", key_size),
            ffi.new("char[]", key_size),
            ffi.new("char[]", value_size),
        )
        result = lib.bpf_map_get_next_key(self.fd, ffi.NULL, following)
        while result == 0:
            key, following = following, key
            if lib.bpf_map_lookup_elem(self.fd, key, value) == 0:
                yield bytes(ffi.buffer(key, key_size)), bytes(ffi.buffer(value, value_size))
            result = lib.bpf_map_get_next_key(self.fd, key, following)
        if result != -errno.ENOENT:
            raise BpfError(-result, f"read map {self.name}", said())
