"""Maps, programs, reloads and refusals as the API tells of them."""

from __future__ import annotations

import grpc
import pytest

from services.loader.interfaces import (
    DatapathError,
    DatapathRefused,
    MapHasNoEntries,
    MapInfo,
    MapNotFound,
    MapNotResizable,
    MapRow,
    MapSizeInvalid,
    MapTooSmall,
    ProgramAttachment,
    ProgramInfo,
    ReloadReport,
)
from services.loader.messages import (
    map_message,
    program_message,
    refusal,
    reload_message,
    row_message,
    watch_message,
)
from services.loader.streams.watch import WatchState


def test_a_counted_map_has_a_pressure_and_another_has_none() -> None:
    told = map_message(
        MapInfo("ct4", "lru_hash", 200, 50, 7, 16, 112, flags=2, memory_bytes=4096, resized=True)
    )
    assert (told.entries, told.pressure, told.resized) == (50, 0.25, True)
    assert (told.id, told.key_size, told.value_size, told.flags, told.memory_bytes) == (7, 16, 112, 2, 4096)
    ring = map_message(MapInfo("events", "ringbuf", 4096, None))
    assert not ring.HasField("entries") and not ring.HasField("pressure")
    empty = map_message(MapInfo("ct6", "lru_hash", 200, 0))
    assert empty.HasField("pressure") and empty.pressure == 0


def test_a_program_tells_where_it_runs() -> None:
    place = ProgramAttachment("lxc1", "ingress", "clsact")
    told = program_message(ProgramInfo("p", 3, "ab", 100, ("lxc1",), 90, 4096, 1.5, (place,)))
    assert [(each.device, each.hook, each.kind) for each in told.attachments] == [
        ("lxc1", "ingress", "clsact")
    ]
    assert (told.instructions, told.memory_bytes, told.load_time.ToMilliseconds()) == (90, 4096, 1500)
    assert not program_message(ProgramInfo("p", 3, "ab", 100, ())).HasField("load_time")


def test_a_reload_tells_how_long_it_took() -> None:
    told = reload_message(
        ReloadReport((ProgramInfo("p", 3, "ab", 100, ()),), 110, 1.25, 0.02, ("ct4",), True)
    )
    assert (told.endpoints, list(told.migrated_maps), told.unchanged) == (110, ["ct4"], True)
    assert (told.duration.ToMilliseconds(), told.attach_duration.ToMilliseconds()) == (1250, 20)
    assert [program.name for program in told.programs] == ["p"]


def test_an_entry_keeps_its_bytes() -> None:
    told = row_message(MapRow(b"\1", b"\2\3", '{"a": 1}'))
    assert (told.key, told.value, told.key_json, told.value_json) == (b"\1", b"\2\3", '{"a": 1}', "")


def test_a_watch_tells_when_it_last_heard_something() -> None:
    state = WatchState("policy")
    assert not watch_message(state).HasField("sync_time") and not watch_message(state).synchronized
    state.in_force(5)
    told = watch_message(state, 3)
    assert told.synchronized and told.HasField("sync_time") and told.identity_revision == 3


@pytest.mark.parametrize(
    ("problem", "code", "reason"),
    [
        (DatapathError("no", op="x"), grpc.StatusCode.INTERNAL, "DATAPATH_FAILED"),
        (DatapathRefused("no", op="x"), grpc.StatusCode.FAILED_PRECONDITION, "DATAPATH_UNAVAILABLE"),
        (MapNotFound("no", op="x"), grpc.StatusCode.NOT_FOUND, "MAP_NOT_FOUND"),
        (MapNotResizable("no", op="x"), grpc.StatusCode.FAILED_PRECONDITION, "MAP_NOT_RESIZABLE"),
        (MapSizeInvalid("no", op="x"), grpc.StatusCode.INVALID_ARGUMENT, "MAP_SIZE_INVALID"),
        (MapTooSmall("no", op="x"), grpc.StatusCode.FAILED_PRECONDITION, "MAP_TOO_SMALL"),
        (MapHasNoEntries("no", op="x"), grpc.StatusCode.FAILED_PRECONDITION, "MAP_HAS_NO_ENTRIES"),
    ],
)
def test_a_refusal_has_a_code_a_reason_and_what_is_known(
    problem: DatapathError, code: grpc.StatusCode, reason: str
) -> None:
    told = refusal(problem)
    assert (told.code, told.reason, told.message, told.metadata) == (code, reason, "no", {"op": "x"})
