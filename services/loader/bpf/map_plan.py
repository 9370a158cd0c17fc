"""What becomes of a pinned map when programs come that declare it, perhaps otherwise: a pure function.

A map is used as it is, made, made anew (a ring buffer, which holds nothing that must stay), or made beside
the pinned one and given its content. Where content cannot be carried over, that is said before anything
happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from services.loader.bpf.btf import Layout
from services.loader.bpf.conversion import (
    Conversion,
    Incompatible,
    Move,
    compile_conversion,
    identity,
)
from services.loader.bpf.errors import MapMismatch
from services.loader.bpf.maps import MapDefinition, MapShape

_ARRAYS = ("array", "percpu_array")
# Maps whose elements come and go alike.
_FAMILIES = (("hash", "lru_hash"), ("percpu_hash", "lru_percpu_hash"))
_KEPT_WHOLE = ("array", "percpu_array", "hash", "lru_hash", "percpu_hash", "lru_percpu_hash", "lpm_trie")
# What an LRU map keeps in reserve for each CPU (LOCAL_FREE_TARGET): filled further, it evicts.
_LRU_RESERVE = 128
_CELL_ALIGNMENT = 8
RING_BUFFER = "ringbuf"


class Action(StrEnum):
    """What is done about a declared map."""

    REUSE = "reuse"
    CREATE = "create"
    RECREATE = "recreate"
    MIGRATE = "migrate"


@dataclass(frozen=True, slots=True)
class MapPlan:
    """What is done about one map. ``key`` and ``value`` convert its elements if it migrates; ``why`` says
    what differs.
    """

    name: str
    action: Action
    key: Conversion | None = None
    value: Conversion | None = None
    why: str = ""


def plan_map(name: str, declared: MapShape, pinned: MapShape | None, path: str = "") -> MapPlan:
    """The plan for one map; ``path`` is its pin, for errors. Raises MapMismatch."""
    if pinned is None:
        return MapPlan(name, Action.CREATE)
    why = _difference(declared, pinned)
    if not why:
        return MapPlan(name, Action.REUSE)
    if declared.definition.type_name == pinned.definition.type_name == RING_BUFFER:
        return MapPlan(name, Action.RECREATE, why=why)
    if not _same_family(declared.definition, pinned.definition):
        raise MapMismatch(name, path, str(pinned.definition), str(declared.definition))
    key, value = conversions(name, pinned, declared, path)
    return MapPlan(name, Action.MIGRATE, key, value, why)


def conversions(
    name: str, old: MapShape, new: MapShape, path: str = "", *, lossy: bool = False
) -> tuple[Conversion, Conversion]:
    """How keys and values of one map become those of another; ``lossy`` as in
    :func:`~services.loader.bpf.conversion.compile_conversion`. Values are converted as they are outside the
    kernel. Raises MapMismatch.
    """
    kind = new.definition.type_name
    key = _conversion(
        name, path, "key", old.key, new.key, old.definition.key_size, new.definition.key_size, lossy
    )
    if not key.identical and not lossy and (kind in _ARRAYS or (kind == "lpm_trie" and not key.appends)):
        raise MapMismatch(
            name, path, f"{old.key} of {key.old_size} bytes", f"{new.key} of {key.new_size}", "key"
        )
    value = _conversion(
        name, path, "value", old.value, new.value, old.definition.value_size, new.definition.value_size, lossy
    )
    return key, _cells(value) if new.definition.per_cpu else value


def needed_entries(entries: int, new: MapDefinition, old: MapDefinition, cpus: int) -> int:
    """The smallest max_entries with which a map surely holds what another one did."""
    if not new.type_name.startswith("lru"):
        return entries
    # As full as it was, an LRU map may evict what it would have evicted anyway.
    if old.type_name.startswith("lru") and new.max_entries >= old.max_entries:
        return min(entries, new.max_entries)
    return entries + _LRU_RESERVE * cpus if entries else 0


def _difference(declared: MapShape, pinned: MapShape) -> str:
    words = [
        f"{what} {before} -> {after}"
        for what, before, after in (
            ("type", pinned.definition.type_name, declared.definition.type_name),
            ("max_entries", pinned.definition.max_entries, declared.definition.max_entries),
            ("flags", f"{pinned.definition.flags:#x}", f"{declared.definition.flags:#x}"),
            ("key size", pinned.definition.key_size, declared.definition.key_size),
            ("value size", pinned.definition.value_size, declared.definition.value_size),
        )
        if before != after
    ]
    for what, before, after in (
        ("key", pinned.key, declared.key),
        ("value", pinned.value, declared.value),
    ):
        # A map without BTF is taken at its size.
        if before is not None and after is not None and before != after:
            words.append(f"{what} laid out otherwise")
    return ", ".join(words)


def _same_family(declared: MapDefinition, pinned: MapDefinition) -> bool:
    if declared.type_name == pinned.type_name:
        return declared.type_name in _KEPT_WHOLE
    return any(declared.type_name in family and pinned.type_name in family for family in _FAMILIES)


def _conversion(
    name: str, path: str, part: str, old: Layout | None, new: Layout | None, before: int, after: int,
    lossy: bool,
) -> Conversion:  # fmt: skip
    if old is None or new is None:
        if before == after:
            return identity(before)
        raise MapMismatch(name, path, f"{before} bytes without BTF", f"{after} bytes", part)
    if old.size != before or new.size != after:
        raise MapMismatch(name, path, f"{before} bytes of {old}", f"{after} bytes of {new}", part)
    try:
        return compile_conversion(old, new, key=part == "key", lossy=lossy)
    except Incompatible as problem:
        field = f"{part}.{problem.field}" if problem.field else part
        raise MapMismatch(name, path, problem.old, problem.new, field) from None


def _cells(value: Conversion) -> Conversion:
    """The conversion of one CPU's value, with the padding that follows each."""
    old, new = (
        (size + _CELL_ALIGNMENT - 1) // _CELL_ALIGNMENT * _CELL_ALIGNMENT
        for size in (value.old_size, value.new_size)
    )
    if value.identical:
        return Conversion(old, new, (Move(0, 0, old),))
    return Conversion(old, new, value.moves)
