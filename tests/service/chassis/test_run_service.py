"""A whole process: start, ready file, signals, exit codes, log lines."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table("thing", sa.Column("name", sa.Text, primary_key=True))
"""

PROGRAM = """
import asyncio
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.chassis.db import Database
from services.chassis.service import run_service
from services.chassis.settings import CommonSettings, setting


@dataclass(frozen=True)
class Settings(CommonSettings):
    database_url: str = setting("", help="The store; empty: none.")
    fail_after: float = setting(0.0, help="When a background task fails, in seconds; 0: never.")


async def fail(after):
    await asyncio.sleep(after)
    raise RuntimeError("the disk caught fire")


@asynccontextmanager
async def build(context):
    if context.settings.database_url:
        migrations = Path(__file__).parent / "migrations"
        database = await Database.open(context.settings.database_url, migrations)
        await context.stack.enter_async_context(database)
    if context.settings.fail_after:
        context.background(fail(context.settings.fail_after), "doomed")
    context.log.info("built", database_url="postgresql://admin:hunter2@db/fimbria")
    yield
    context.log.info("left")


run_service(Settings, build, service="thing")
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_first.py").write_text(MIGRATION)
    path = tmp_path / "thing.py"
    path.write_text(PROGRAM)
    return path


def run(program: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(program), *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@contextmanager
def started(program: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    ready = program.with_name("ready.json")
    process = subprocess.Popen(
        [sys.executable, str(program), "--ready-file", str(ready), *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        limit = time.monotonic() + 20
        while not ready.exists():
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.01)
        yield process, json.loads(ready.read_text())
    finally:
        process.kill()
        process.communicate()


def test_ready_means_serving_and_sigterm_ends_well(program: Path, tmp_path: Path) -> None:
    store, ready = tmp_path / "deep" / "store" / "thing.db", tmp_path / "ready.json"
    with started(program, "--database-url", f"sqlite:///{store}") as (
        process,
        said,
    ):
        assert said["pid"] == process.pid
        assert stat.S_IMODE(ready.stat().st_mode) == 0o600
        assert stat.S_IMODE(store.stat().st_mode) == 0o600
        assert stat.S_IMODE(store.parent.stat().st_mode) == 0o700
        with grpc.insecure_channel(said["addresses"][0]) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            answer = check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=10)
        assert process.returncode == 0
    assert not ready.exists()
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["event"] for line in lines] == ["built", "serving", "stopping", "left"]
    assert {(line["service"], line["level"]) for line in lines} == {("thing", "info")}
    assert lines[0]["database_url"] == "postgresql://admin:***@db/fimbria"


def test_a_busy_port_is_one_line_and_exit_code_1(program: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run(program, "--listen", address, "--log-level", "error")
    assert ended.returncode == 1
    assert ended.stderr == (
        f"thing: error: cannot listen on {address}: address already in use; "
        "choose another address with --listen\n"
    )


def test_a_bad_setting_is_one_line_and_exit_code_2(program: Path) -> None:
    ended = run(program, FIMBRIA_DRAIN_SECONDS="soon")
    assert ended.returncode == 2
    assert ended.stderr == "thing: error: FIMBRIA_DRAIN_SECONDS is 'soon'; expected a number from 0 to 3600\n"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sqlite:////proc/fimbria/thing.db", "cannot open the database /proc/fimbria/thing.db"),
        ("sqlite:///{dir}/thing.py/thing.db", "expected a directory and file that this process may write"),
        ("sqlite:///{dir}/thing.py", "damaged or not a SQLite database"),
        ("postgresql://admin:hunter2@127.0.0.1:1/fimbria", "is the server running"),
        ("mysql://admin:hunter2@db/fimbria", "expected sqlite:///PATH or postgresql://"),
        ("nonsense", "expected sqlite:///PATH"),
    ],
)
def test_a_store_that_cannot_be_opened_is_one_line(program: Path, url: str, problem: str) -> None:
    ended = run(program, "--database-url", url.format(dir=program.parent))
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("thing: error: ") and problem in line
    assert "hunter2" not in line


def test_a_trace_file_that_cannot_be_opened_is_one_line(program: Path) -> None:
    ended = run(program, "--trace-file", "/nonexistent/spans.jsonl")
    assert ended.returncode == 1
    assert ended.stderr == "thing: error: /nonexistent/spans.jsonl: No such file or directory\n"


def test_a_background_task_that_fails_stops_the_service(program: Path) -> None:
    ended = run(program, "--fail-after", "0.2")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "thing: error: a background task failed: the disk caught fire"


def test_help_lists_every_setting(program: Path) -> None:
    ended = run(program, "--help")
    assert ended.returncode == 0
    assert "--fail-after  (FIMBRIA_FAIL_AFTER)" in ended.stdout and "--listen" in ended.stdout
