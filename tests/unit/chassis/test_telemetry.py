from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

from services.chassis import names
from services.chassis.errors import NotFound
from services.chassis.logs import add_trace, configure_logging, get_logger, mask_secrets
from services.chassis.settings import CommonSettings
from services.chassis.telemetry import Telemetry, init_telemetry, inject, remote_context, span

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "spans.jsonl"


@pytest.fixture
def telemetry(store: Path) -> Iterator[Telemetry]:
    made = init_telemetry("ipam", CommonSettings(trace_file=str(store), instance="ipam-0"))
    yield made
    made.shutdown()


def written(store: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.read_text().splitlines()]


def test_a_span_line_has_what_the_trace_view_needs(telemetry: Telemetry, store: Path) -> None:
    started = time.time_ns()
    with span(
        names.ENDPOINT_REGENERATE, start_time=started - 5_000, attributes={names.ENDPOINT_ID: 7}, none=None
    ) as made:
        made.add_event("queued", {"position": 1})
    telemetry.flush()
    (line,) = written(store)
    assert line["name"] == "endpoint.regenerate"
    assert (line["service"], line["kind"], line["status"], line["parent_id"]) == (
        "ipam",
        "INTERNAL",
        "UNSET",
        "",
    )
    assert line["start_ns"] == started - 5_000 and line["end_ns"] >= started
    assert line["attributes"] == {"endpoint.id": 7}
    assert line["events"][0]["name"] == "queued"
    assert (len(line["trace_id"]), len(line["span_id"])) == (32, 16)


def test_the_file_is_private_and_written_soon_without_being_asked(telemetry: Telemetry, store: Path) -> None:
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    for _ in range(3):
        before = len(written(store))
        with span("work"):
            ended = time.monotonic()
        while len(written(store)) == before:
            assert time.monotonic() - ended < 10
            time.sleep(0.005)
    assert len(written(store)) == 3


def test_two_processes_share_a_file_line_by_line(telemetry: Telemetry, store: Path) -> None:
    child = os.fork()
    if child == 0:
        mine = init_telemetry("child", CommonSettings(trace_file=str(store)))
        for _ in range(500):
            with span("child"):
                continue
        mine.shutdown()
        os._exit(0)
    for _ in range(500):
        with span("parent"):
            continue
    assert os.waitpid(child, 0)[1] == 0
    telemetry.flush()
    assert sorted({line["service"] for line in written(store)}) == ["child", "ipam"]
    assert len(written(store)) == 1000


def test_a_failure_is_recorded_with_its_reason(telemetry: Telemetry, store: Path) -> None:
    with pytest.raises(NotFound):
        with span("work"):
            raise NotFound("no pool x", reason="POOL_NOT_FOUND")
    telemetry.flush()
    (line,) = written(store)
    assert (line["status"], line["status_message"]) == ("ERROR", "no pool x")
    assert line["attributes"] == {"error.type": "POOL_NOT_FOUND"}


def test_a_remote_context_becomes_the_parent(telemetry: Telemetry, store: Path) -> None:
    with span("outer"):
        with span("work", parent=remote_context(PARENT, "vendor=1")):
            carried = inject()
    assert carried.traceparent.startswith("00-0af7651916cd43dd8448eb211c80319c-")
    assert carried.tracestate == "vendor=1"
    telemetry.flush()
    inner = written(store)[0]
    assert (inner["trace_id"], inner["parent_id"]) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        PARENT.replace("0af", "xyz"),
        "ff" + PARENT[2:],
        "00-1-2-3",
    ],
)
def test_a_malformed_context_starts_a_trace_of_its_own(telemetry: Telemetry, text: str) -> None:
    with span("work", parent=remote_context(text)) as made:
        assert made.get_span_context().is_valid


def test_without_a_span_there_is_nothing_to_carry(telemetry: Telemetry) -> None:
    assert not inject()


def test_after_shutdown_spans_are_dropped_quietly(telemetry: Telemetry, store: Path) -> None:
    telemetry.shutdown()
    with span("late"):
        assert trace.get_current_span().is_recording()
    telemetry.shutdown()
    assert written(store) == []


def test_rpc_span_names_are_service_and_method() -> None:
    assert names.rpc_span_name("/fimbria.ipam.v1.AddressService/Allocate") == "ipam.Allocate"
    assert names.rpc_span_name("/plain.Service/Call") == "plain.Call"


def test_log_lines_inside_a_span_have_its_ids(telemetry: Telemetry) -> None:
    assert add_trace(None, "info", {}) == {}
    with span("work") as made:
        where = made.get_span_context()
        assert add_trace(None, "info", {}) == {
            "trace_id": f"{where.trace_id:032x}",
            "span_id": f"{where.span_id:016x}",
        }


def test_log_lines_tell_no_secrets() -> None:
    event = {
        "database_url": "postgresql://admin:hunter2@db/x",
        "event": "cannot open postgresql://admin:hunter2@db/x",
        "otlp": "http://127.0.0.1:4317",
        "api_token": "abc",
    }
    assert mask_secrets(None, "info", event) == {
        "database_url": "postgresql://admin:***@db/x",
        "event": "cannot open postgresql://admin:***@db/x",
        "otlp": "http://127.0.0.1:4317",
        "api_token": "***",
    }


def test_a_line_is_written_whatever_is_in_it(
    capsys: pytest.CaptureFixture[str], telemetry: Telemetry
) -> None:
    configure_logging("ipam", CommonSettings())
    get_logger("services.ipam").info("odd", number=1 << 70, name="\udc80")
    assert json.loads(capsys.readouterr().err)["number"] == 1 << 70
