"""PostgreSQL for tests: one server for each test process, started when first asked for, and a new database
for each use.

A server lies in a directory whose name says which process it belongs to. A process that was killed leaves its
server behind; whoever starts one next removes those whose process is provably gone, and nothing else.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import re
import subprocess
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cli.lab.postgres import Postgres, binary
from cli.lab.process import ProcessId
from services.chassis import postgres_migrate
from tests.patience import patient

T = TypeVar("T")

STORES = ("sqlite", "postgresql")

# Short, because the path of a socket has to be.
_ROOT = Path("/tmp")
_NAME = re.compile(r"fimbria-pg-(\d+)-(\d+)(?:-\d+)?")
_ADMIN_SECONDS = patient(30.0)
_numbers = itertools.count(1)
_started: list[Postgres] = []


def new_server(*, fsync: bool = True) -> Postgres:
    """A server of its own, not started, for tests that kill it; removed when this process ends.

    What it has committed survives it without `fsync` as well, and disks that are busy do not hold it up.
    """
    _sweep()
    own = ProcessId.of(os.getpid())
    assert own is not None
    server = Postgres(_ROOT / f"fimbria-pg-{own.pid}-{own.started}-{next(_numbers)}", fsync)
    if not _started:
        atexit.register(_remove_all)
    _started.append(server)
    return server


_shared: Postgres | None = None


def shared_server() -> Postgres:
    """The server of this process, running."""
    global _shared
    if _shared is None:
        _shared = new_server(fsync=os.environ.get("FIMBRIA_TEST_FSYNC") != "off")
    if _shared.process() is None:
        _shared.start()
    return _shared


@contextmanager
def fresh_database(*services: str, server: Postgres | None = None) -> Iterator[str]:
    """The URL of a new database, which is dropped afterwards; with the schemas of `services` in it."""
    server = server or shared_server()
    name = f"t{next(_numbers)}"
    administrate(server, f"CREATE DATABASE {name} TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        migrate(server.url(name), *services)
        yield server.url(name)
    finally:
        administrate(server, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def store_of(service: str, kind: str) -> Iterator[list[str]]:
    """Flags that give a service process a store of one of STORES; SQLite is what it gets without any."""
    if kind == "sqlite":
        yield []
        return
    with fresh_database(service) as url:
        yield [f"--database-url={url}"]


def migrate(url: str, *services: str) -> None:
    """What `fimbria db migrate` does, in this process."""
    for service in services:
        _run(postgres_migrate.migrate(url, f"services.{service}.migrations", service))


def administrate(server: Postgres, statement: str, database: str = "postgres") -> str:
    """Carries out one statement as the server's superuser; the rows, fields separated by `|`."""
    command = [str(binary("psql")), "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-c", statement]
    command.append(server.url(database))
    done = subprocess.run(command, capture_output=True, text=True, timeout=_ADMIN_SECONDS, check=False)
    assert done.returncode == 0, f"{statement}: {done.stderr}"
    return done.stdout.strip()


def _run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, also where a loop runs already."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(asyncio.run(work))
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def _sweep() -> None:
    """Removes servers of processes that are gone."""
    for directory in _ROOT.glob("fimbria-pg-*"):
        match = _NAME.fullmatch(directory.name)
        if match is None or directory.is_symlink() or not directory.is_dir():
            continue
        if not ProcessId(int(match[1]), int(match[2])).alive:
            Postgres(directory).remove()


def _remove_all() -> None:
    while _started:
        _started.pop().remove()


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """The URL of a new, empty database."""
    with fresh_database() as url:
        yield url
