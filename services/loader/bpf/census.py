"""How many elements a map has, counted beside everything else: by the map's id, with a descriptor of its own.

The kernel keeps no such number. A count reads the map in batches, nearly all of it in the kernel: Python's
lock is not held meanwhile, and whoever opens, migrates or closes maps need not be waited for.
"""

from __future__ import annotations

import errno
from typing import Any, Final

from services.loader.bpf.errors import BpfError
from services.loader.bpf.maps import Map
from services.loader.bpf.native import check, ffi, lib, said, sized

_BATCH: Final = 8192
# Elements of these are there from the beginning (arrays), or none are (a ring buffer).
_UNCOUNTED: Final = ("array", "percpu_array", "prog_array", "ringbuf")
_PER_CPU: Final = ("percpu_hash", "lru_percpu_hash")


def countable(type_name: str) -> bool:
    """Whether the elements of a map of that type come and go."""
    return type_name not in _UNCOUNTED and not type_name.startswith("type ")


def count_elements(map_id: int) -> int | None:
    """The elements of a map, those that come or go meanwhile among them or not; None when there is no such
    map (any more) or its elements are not counted. Raises BpfError.
    """
    fd = lib.bpf_map_get_fd_by_id(map_id)
    if fd == -errno.ENOENT:
        said()
        return None
    bpf_map = Map(str(map_id), check(fd, f"open map {map_id}"))
    try:
        if not countable(bpf_map.definition.type_name):
            return None
        counted = None if bpf_map.definition.type_name in _PER_CPU else _in_batches(bpf_map)
        return _one_by_one(bpf_map) if counted is None else counted
    finally:
        bpf_map.close()


def _in_batches(bpf_map: Map) -> int | None:
    """The count, or None where the kernel has no batches for the type."""
    definition = bpf_map.definition
    chunk = min(_BATCH, definition.max_entries)
    tokens = [ffi.new("char[]", max(definition.key_size, 4)) for _ in range(2)]
    keys, values = _buffers(bpf_map, chunk)
    previous: Any = ffi.NULL
    turn = total = 0
    while True:
        count = ffi.new("__u32 *", chunk)
        result = lib.bpf_map_lookup_batch(
            bpf_map.fd, previous, tokens[turn], keys, values, count, sized("struct bpf_map_batch_opts")
        )
        if result == -errno.ENOSPC:
            # One bucket alone holds more than the chunk.
            chunk *= 2
            keys, values = _buffers(bpf_map, chunk)
            continue
        if result not in (0, -errno.ENOENT):
            if previous == ffi.NULL:
                said()
                return None
            check(result, f"count map {bpf_map.name}")
        total += int(count[0])
        if result:
            return total
        previous, turn = tokens[turn], 1 - turn


def _buffers(bpf_map: Map, chunk: int) -> tuple[Any, Any]:
    return (
        ffi.new("char[]", chunk * bpf_map.definition.key_size),
        ffi.new("char[]", chunk * bpf_map.definition.value_size),
    )


def _one_by_one(bpf_map: Map) -> int:
    size = bpf_map.definition.key_size
    key, following = ffi.new("char[]", size), ffi.new("char[]", size)
    total, result = 0, lib.bpf_map_get_next_key(bpf_map.fd, ffi.NULL, following)
    # A key that goes meanwhile begins the walk anew: it ends all the same.
    while result == 0 and total < bpf_map.definition.max_entries:
        total += 1
        key, following = following, key
        result = lib.bpf_map_get_next_key(bpf_map.fd, key, following)
    if result not in (0, -errno.ENOENT):
        raise BpfError(-result, f"count map {bpf_map.name}", said())
    return total
