"""One BPF map: bytes in, bytes out, in batches where the kernel has them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from services.loader.bpf.errors import BpfError
from services.loader.bpf.native import check, ffi, lib, said, sized

# enum bpf_map_type
_TYPE_NAMES = {
    1: "hash", 2: "array", 3: "prog_array", 5: "percpu_hash", 6: "percpu_array", 9: "lru_hash", 11:
    "lpm_trie", 27: "ringbuf", }  # fmt: skip

_BATCH = 4096
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
    def type_name(self) -> str:
        """The type as bpftool calls it."""
        return _TYPE_NAMES.get(self.type, f"type {self.type}")

    def __str__(self) -> str:
        return (
            f"{self.type_name} key {self.key_size} value {self.value_size} max_entries {self.max_entries} "
            f"flags {self.flags:#x}"
        )


def describe(fd: int) -> tuple[int, MapDefinition]:
    """A map's kernel id and definition."""
    info = ffi.new("struct bpf_map_info *")
    size = ffi.new("__u32 *", ffi.sizeof("struct bpf_map_info"))
    check(lib.bpf_obj_get_info_by_fd(fd, info, size), "read map information")
    return int(info.id), MapDefinition(
        info.type, info.key_size, info.value_size, info.max_entries, info.map_flags
    )


class Map:
    """An open map. Owns ``fd``. Methods raise BpfError that names the map; any thread may call them."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.id, self.definition = describe(fd)

    def close(self) -> None:
        """Closes the descriptor; the map lives on in its pin and programs."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def get(self, key: bytes) -> bytes | None:
        """The value at ``key``, or None."""
        value = ffi.new("char[]", self.definition.value_size)
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

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every element once; those that come or go meanwhile may be among them or not."""
        yield from self.items_of(self.definition.value_size)

    def items_of(self, value_size: int) -> Iterator[tuple[bytes, bytes]]:
        """As :meth:`items` for a map whose values are larger outside the kernel (per-CPU ones)."""
        key_size = self.definition.key_size
        chunk = min(_BATCH, self.definition.max_entries)
        previous: Any = ffi.NULL
        tokens = [ffi.new("char[]", max(key_size, 4)) for _ in range(2)]
        turn = 0
        while True:
            keys, values = ffi.new("char[]", chunk * key_size), ffi.new("char[]", chunk * value_size)
            count = ffi.new("__u32 *", chunk)
            result = lib.bpf_map_lookup_batch(
                self.fd, previous, tokens[turn], keys, values, count, sized("struct bpf_map_batch_opts")
            )
            if result == -errno.ENOSPC:
                # One bucket alone holds more than the chunk.
                chunk *= 2
                continue
            if -result in _NO_BATCH and previous == ffi.NULL:
                said()
                yield from self._items_one_by_one(value_size)
                return
            if result not in (0, -errno.ENOENT):
                check(result, f"read map {self.name}")
            key_bytes, value_bytes = bytes(ffi.buffer(keys)), bytes(ffi.buffer(values))
            for index in range(count[0]):
                yield (
                    key_bytes[index * key_size : (index + 1) * key_size],
                    value_bytes[index * value_size : (index + 1) * value_size],
                )
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
