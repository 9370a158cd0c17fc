"""What a map holds, as bytes and as JSON by the map's own type information."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from services.loader.bpf.btf import Layout, decode
from services.loader.bpf.errors import BpfError
from services.loader.bpf.maps import Map, MapDefinition, shape_of
from services.loader.bpf.native import check, lib, said

_NO_ENTRIES = ("ringbuf", "prog_array")
_ENOENT = 2


@dataclass(frozen=True, slots=True)
class DumpedRow:
    """An element; of a per-CPU map, ``value`` is one after the other and ``value_json`` a list. JSON is ""
    where the map has no type information.
    """

    key: bytes
    value: bytes
    key_json: str
    value_json: str


def can_list(definition: MapDefinition) -> bool:
    """Whether a map's elements can be listed."""
    return definition.type_name not in _NO_ENTRIES and not definition.type_name.startswith("type ")


def dump(name: str, number: int, limit: int) -> Iterator[DumpedRow]:
    """At most ``limit`` elements, 0 for all, of the map that the kernel has under an id, with a descriptor of
    its own. Raises BpfError; a map that is gone is ENOENT.
    """
    fd = lib.bpf_map_get_fd_by_id(number)
    if fd == -_ENOENT:
        said()
        raise BpfError(_ENOENT, f"read map {name}", "it has been exchanged for another one; try again")
    found = Map(name, check(fd, f"open map {name}"))
    try:
        shape = shape_of(found.fd)
        step = found.cell_size if not found.definition.per_cpu else (found.definition.value_size + 7) // 8 * 8
        for key, value in islice(found.items_of(found.cell_size), limit or None):
            cells = [value[at : at + step] for at in range(0, len(value), step)] or [value]
            yield DumpedRow(
                key,
                value,
                _json(shape.key, [key], False),
                _json(shape.value, cells, found.definition.per_cpu),
            )
    finally:
        found.close()


def _json(layout: Layout | None, cells: list[bytes], per_cpu: bool) -> str:
    if layout is None:
        return ""
    decoded = [decode(layout, cell) for cell in cells]
    return json.dumps(decoded if per_cpu else decoded[0])
