"""Each kind of change to a map, in the kernel: what it held is there afterwards, member by member."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from services.loader.bpf.btf import Record
from services.loader.bpf.errors import MapFull, MapMismatch
from services.loader.bpf.map_dump import dump
from services.loader.bpf.map_plan import Action, conversions, plan_map
from services.loader.bpf.maps import Map, MapShape, shape_of
from services.loader.bpf.migration import Migration, merge
from services.loader.bpf.native import lib
from services.loader.bpf.opening import check_room
from tests.kernel.migration.compiled import maps_of

pytestmark = pytest.mark.kernel

OLD = struct.Struct("=IhH4s8s")
CPUS = int(lib.libbpf_num_possible_cpus())


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Map]]:
    scratch = tmp_path_factory.mktemp("kinds")
    with maps_of("kinds.c", scratch) as made:
        yield made


@pytest.fixture(autouse=True)
def emptied(maps: dict[str, Map]) -> None:
    for each in maps.values():
        if each.definition.type_name in ("hash", "lru_hash", "lpm_trie", "percpu_hash"):
            each.delete_many([key for chunk in each.chunks() for key, _ in chunk.rows()])


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


def old_value(number: int) -> bytes:
    return OLD.pack(number, -number % 300 - 150, 77, bytes((192, 0, 2, number % 256)), bytes(range(8)))


def expected(number: int) -> dict[str, object]:
    return {
        "addr": f"192.0.2.{number % 256}",
        "added": 0,
        "count": number,
        "signed_number": -number % 300 - 150,
        "nested": [{"inner": "000102030000", "more": 0}, {"inner": "040506070000", "more": 0}],
    }


def migration(maps: dict[str, Map], name: str) -> Migration:
    old, new = maps[f"old_{name}"], maps[f"new_{name}"]
    plan = plan_map(name, shape_of(new.fd), shape_of(old.fd))
    assert plan.action is Action.MIGRATE and plan.key is not None and plan.value is not None
    check_room(old, new.definition)
    return Migration(old, new, plan.key, plan.value)


def content(found: Map) -> dict[bytes, object]:
    return {row.key: json.loads(row.value_json) for row in dump(found.name, found.id, 0)}


def test_members_are_added_widened_moved_and_dropped(maps: dict[str, Map]) -> None:
    maps["old_value"].put_many([(u32(number), old_value(number)) for number in range(1000)])
    filled = migration(maps, "value").fill()
    assert (filled.entries, filled.caught_up) == (1000, 0)
    assert content(maps["new_value"]) == {u32(number): expected(number) for number in range(1000)}


def test_keys_gain_members(maps: dict[str, Map]) -> None:
    key = struct.Struct("=IHH")
    maps["old_key"].put_many([(key.pack(number, 80, 0), u32(number)) for number in range(500)])
    migration(maps, "key").fill()
    rows = {row.key_json: row.value_json for row in dump("new_key", maps["new_key"].id, 0)}
    assert rows == {
        json.dumps({"port": 80, "number": number, "zone": 0}): str(number) for number in range(500)
    }


@pytest.mark.parametrize("name", ["lru", "from_lru", "smaller", "flags"])
def test_types_sizes_and_flags_may_be_others(maps: dict[str, Map], name: str) -> None:
    items = {u32(number): struct.pack("=Q", number) for number in range(900)}
    maps[f"old_{name}"].put_many(list(items.items()))
    migration(maps, name).fill()
    assert dict(maps[f"new_{name}"].items()) == items


def test_prefixes_stay_prefixes(maps: dict[str, Map]) -> None:
    prefix = struct.Struct("=I4s")
    items = {
        prefix.pack(length, bytes((10, number, 0, 0))): old_value(number)
        for number in range(100)
        for length in (16, 24, 32)
    }
    maps["old_trie"].put_many(list(items.items()))
    migration(maps, "trie").fill()
    found = content(maps["new_trie"])
    assert found.keys() == items.keys()
    assert all(found[key] == expected(OLD.unpack(value)[0]) for key, value in items.items())
    longest = maps["new_trie"].get(prefix.pack(32, bytes((10, 7, 200, 1))))
    assert longest is not None and longest == maps["new_trie"].get(prefix.pack(16, bytes((10, 7, 0, 0))))


def test_an_array_grows(maps: dict[str, Map]) -> None:
    for number in range(100):
        maps["old_array"].put(u32(number), old_value(number))
    migration(maps, "array").fill()
    found = content(maps["new_array"])
    assert len(found) == 300
    assert all(found[u32(number)] == expected(number) for number in range(100))
    assert found[u32(100)] == {**expected(0), "addr": "0.0.0.0", "signed_number": 0, "nested": [
        {"inner": "000000000000", "more": 0}] * 2}  # fmt: skip


@pytest.mark.parametrize(("name", "count"), [("cpu_array", 10), ("cpu_hash", 50)])
def test_every_cpus_value_is_carried_over(maps: dict[str, Map], name: str, count: int) -> None:
    old = maps[f"old_{name}"]
    for number in range(count):
        cells = [old_value(1000 * cpu + number) for cpu in range(CPUS)]
        if name == "cpu_hash":
            cells = [cell[:4] for cell in cells]
        old.put(u32(number), b"".join(cell.ljust(old.cell_size // CPUS, b"\0") for cell in cells))
    migration(maps, name).fill()
    found = content(maps[f"new_{name}"])
    for number in range(count):
        numbers = [1000 * cpu + number for cpu in range(CPUS)]
        wanted = numbers if name == "cpu_hash" else [expected(each) for each in numbers]
        assert found[u32(number)] == wanted


def test_what_changes_meanwhile_is_caught_up_with(maps: dict[str, Map]) -> None:
    old, new = maps["old_value"], maps["new_value"]
    old.put_many([(u32(number), old_value(number)) for number in range(500)])
    under_way = migration(maps, "value")
    under_way.fill()
    old.put(u32(3), old_value(4000))
    old.put(u32(900), old_value(900))
    old.delete(u32(5))
    assert under_way.catch_up() == 3
    assert under_way.catch_up() == 0
    wanted = {u32(number): expected(number) for number in range(500) if number != 5}
    wanted |= {u32(3): expected(4000), u32(900): expected(900)}
    assert content(new) == wanted


def test_settling_overwrites_nothing_newer_but_what_began_before(maps: dict[str, Map]) -> None:
    old, new = maps["old_value"], maps["new_value"]
    old.put_many([(u32(number), old_value(number)) for number in range(500)])
    under_way = migration(maps, "value")
    under_way.fill()
    newer = struct.pack("=4sIQq16s", bytes(4), 9, 9, 9, bytes(16))
    # Only the old programs wrote it; only the new ones; both; both, and for the first time; only the old one.
    old.put(u32(1), old_value(4000))
    new.put(u32(2), newer)
    old.put(u32(3), old_value(4000))
    new.put(u32(3), newer)
    old.put(u32(900), old_value(900))
    new.put(u32(900), newer)
    old.put(u32(901), old_value(901))
    assert under_way.settle() == 3
    found = content(new)
    assert found[u32(1)] == expected(4000)
    assert found[u32(2)] == found[u32(3)] != expected(3)
    assert (found[u32(900)], found[u32(901)]) == (expected(900), expected(901))
    assert len(found) == 502


def test_without_knowing_what_was_copied_the_later_expiry_counts(maps: dict[str, Map]) -> None:
    old, new = maps["old_same"], maps["new_same"]
    shape = shape_of(new.fd)
    key, value = conversions("same", shape_of(old.fd), shape)
    old.put_many([(u32(number), old_value(number)) for number in range(10)])
    new.put(u32(1), old_value(77))
    assert merge(old, new, key, value, shape, overwrite=False) == 9
    assert new.get(u32(1)) == old_value(77)
    assert merge(old, new, key, value, shape, overwrite=True) == 1
    assert dict(new.items()) == dict(old.items())
    # As if the first member were called so.
    assert isinstance(shape.value, Record)
    first, *others = shape.value.members
    expiring = replace(shape, value=replace(shape.value, members=(replace(first, name="expires"), *others)))
    new.put(u32(1), old_value(2))
    new.put(u32(5), old_value(4))
    assert merge(old, new, key, value, expiring, overwrite=False) == 1
    assert (new.get(u32(1)), new.get(u32(5))) == (old_value(2), old_value(5))


@pytest.mark.parametrize(
    ("name", "field", "words"),
    [
        ("refused_key", "key.port", "no more"),
        ("refused_narrower", "value", "__u64"),
        ("refused_type", "", "array"),
        ("refused_prefix", "key.prefixlen", "no more"),
    ],
)
def test_what_cannot_be_carried_over_is_named(
    maps: dict[str, Map], name: str, field: str, words: str
) -> None:
    old, new = (shape_of(maps[f"{which}_{name}"].fd) for which in ("old", "new"))
    with pytest.raises(MapMismatch, match=words) as caught:
        plan_map(name, new, old, f"/pins/maps/{name}")
    assert (caught.value.name, caught.value.field) == (name, field)
    assert f"/pins/maps/{name}" in str(caught.value) and "remove the pin" in str(caught.value)


def test_what_holds_nothing_is_made_anew_and_what_is_alike_stays(maps: dict[str, Map]) -> None:
    ring, same = shape_of(maps["old_ring"].fd), shape_of(maps["old_same"].fd)
    larger = MapShape(replace(ring.definition, max_entries=8192))
    assert plan_map("ring", ring, ring).action is Action.REUSE
    assert plan_map("ring", larger, ring).action is Action.RECREATE
    assert plan_map("same", shape_of(maps["new_same"].fd), same).action is Action.REUSE
    assert plan_map("same", same, None).action is Action.CREATE


def test_a_map_takes_what_fits_or_nothing(maps: dict[str, Map]) -> None:
    old = maps["old_smaller"]
    old.put_many([(u32(number), bytes(8)) for number in range(1001)])
    with pytest.raises(MapFull, match="holds 1001 entries, which do not fit into max_entries 1000"):
        migration(maps, "smaller")
    array = maps["new_array"]
    array.put(u32(250), bytes(array.definition.value_size - 1) + b"\1")
    with pytest.raises(MapFull, match="251 entries"):
        check_room(array, replace(array.definition, max_entries=250))
    check_room(array, replace(array.definition, max_entries=251))
