"""What becomes of a pinned map, decided without a kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.loader.bpf.btf import Layout, Member, Record, Scalar
from services.loader.bpf.errors import MapMismatch
from services.loader.bpf.map_plan import Action, conversions, needed_entries, plan_map
from services.loader.bpf.maps import MapDefinition, MapShape

HASH, ARRAY, CPU_HASH, LRU, CPU_LRU, TRIE, RING = 1, 2, 5, 9, 10, 11, 27
U32, U64 = Scalar("__u32", 4), Scalar("__u64", 8)


def record(*members: tuple[str, Layout]) -> Record:
    offset, made = 0, []
    for name, layout in members:
        made.append(Member(name, offset, layout))
        offset += layout.size
    return Record("r", offset, tuple(made))


def shape(
    kind: int = HASH, key: Layout = U32, value: Layout = U64, size: int = 100, flags: int = 0
) -> MapShape:
    return MapShape(MapDefinition(kind, key.size, value.size, size, flags), key, value)


def without_btf(found: MapShape) -> MapShape:
    return replace(found, key=None, value=None)


def test_a_map_that_is_alike_is_used_on() -> None:
    assert plan_map("m", shape(), shape()).action is Action.REUSE
    assert plan_map("m", shape(), without_btf(shape())).action is Action.REUSE
    renamed = shape(value=replace(U64, name="unsigned long long"))
    assert plan_map("m", renamed, shape()).action is Action.REUSE


def test_members_that_change_places_are_another_map() -> None:
    before, after = record(("a", U32), ("b", U32)), record(("b", U32), ("a", U32))
    plan = plan_map("m", shape(value=after), shape(value=before))
    assert plan.action is Action.MIGRATE and plan.why == "value laid out otherwise"
    assert plan.value is not None and bytes(plan.value.apply(b"\1\0\0\0\2\0\0\0")) == b"\2\0\0\0\1\0\0\0"


@pytest.mark.parametrize("after", [shape(size=200), shape(size=50), shape(flags=1), shape(LRU)])
def test_what_only_holds_otherwise_migrates_as_it_is(after: MapShape) -> None:
    for before in (shape(), without_btf(shape())):
        plan = plan_map("m", after, before)
        assert plan.action is Action.MIGRATE
        assert plan.key is not None and plan.key.identical and plan.value is not None and plan.value.identical


@pytest.mark.parametrize(
    "kinds", [(HASH, ARRAY), (HASH, CPU_HASH), (TRIE, HASH), (RING, HASH), (LRU, CPU_LRU)]
)
def test_types_that_do_not_hold_the_same_are_refused(kinds: tuple[int, int]) -> None:
    with pytest.raises(MapMismatch, match="pinned map m"):
        plan_map("m", shape(kinds[1]), shape(kinds[0]))


def test_other_bytes_without_type_information_are_refused() -> None:
    with pytest.raises(MapMismatch, match="8 bytes without BTF") as caught:
        plan_map("m", shape(value=record(("a", U64), ("b", U32))), without_btf(shape()))
    assert caught.value.field == "value"


def test_a_prefix_may_only_grow_at_its_end() -> None:
    before = record(("prefixlen", U32), ("addr", U32))
    longer = record(("prefixlen", U32), ("addr", U32), ("zone", U32))
    between = record(("prefixlen", U32), ("zone", U32), ("addr", U32))
    assert plan_map("m", shape(TRIE, longer), shape(TRIE, before)).action is Action.MIGRATE
    with pytest.raises(MapMismatch):
        plan_map("m", shape(TRIE, between), shape(TRIE, before))


def test_values_of_per_cpu_maps_are_converted_in_their_cells() -> None:
    before, after = record(("a", U32)), record(("a", U32), ("b", U64))
    _, value = conversions("m", shape(CPU_HASH, value=before), shape(CPU_HASH, value=after))
    cells = b"\1\0\0\0....\2\0\0\0...."
    assert bytes(value.apply(cells)) == b"\1" + bytes(15) + b"\2" + bytes(15)
    _, kept = conversions("m", shape(CPU_HASH, value=before), shape(CPU_HASH, value=before, size=7))
    assert kept.identical and kept.old_size == 8


def test_an_lru_map_needs_its_reserve_when_it_shrinks() -> None:
    small, large = shape(LRU, size=100).definition, shape(LRU, size=1000).definition
    assert needed_entries(50, small, large, 2) == 50 + 256
    assert needed_entries(0, small, large, 2) == 0
    # As full as it was: it evicts what it would have evicted anyway.
    assert needed_entries(1000, large, large, 2) == 1000
    assert needed_entries(100, large, small, 2) == 100
    assert needed_entries(100, shape(HASH, size=100).definition, large, 2) == 100
    assert needed_entries(100, small, shape(HASH, size=100).definition, 2) == 356
