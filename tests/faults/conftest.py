"""Short-lived directories of a run's own, and worlds of processes that are gone when a test is over."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.lab.postgres import Postgres
from tests.faults.nursery import Nursery
from tests.faults.storm import World, postgres_world, seed_of_the_run, sqlite_world
from tests.postgres import fresh_database, new_server


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    made = Nursery("ipam", "identity")
    yield made
    made.close()


@pytest.fixture
def seed() -> int:
    return seed_of_the_run()


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path is short enough for unix sockets."""
    made = Path(tempfile.mkdtemp(prefix="fault-"))
    yield made
    if not os.environ.get("FIMBRIA_FAULT_KEEP"):
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def running(world: World) -> Iterator[World]:
    try:
        world.start()
        yield world
        world.check_logs()
    finally:
        world.stop()


@pytest.fixture
def lone(nursery: Nursery, short: Path, seed: int) -> Iterator[World]:
    """One ipam and one identity process over SQLite."""
    with running(sqlite_world(nursery, short, seed)) as world:
        yield world


@pytest.fixture
def lone_identity(nursery: Nursery, short: Path, seed: int) -> Iterator[World]:
    """One identity process over SQLite."""
    with running(sqlite_world(nursery, short, seed, ipam=False)) as world:
        yield world


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """A PostgreSQL server that tests kill: nobody else's."""
    made = new_server()
    made.start()
    yield made
    made.remove()


@pytest.fixture
def database_url(server: Postgres) -> Iterator[str]:
    """A new database with the schemas of ipam and identity."""
    with fresh_database("ipam", "identity", server=server) as url:
        yield url


@pytest.fixture
def three(nursery: Nursery, short: Path, seed: int, server: Postgres, database_url: str) -> Iterator[World]:
    """Three replicas of ipam and of identity over PostgreSQL."""
    with running(postgres_world(nursery, short, seed, server, database_url)) as world:
        yield world


@pytest.fixture
def three_identities(
    nursery: Nursery, short: Path, seed: int, server: Postgres, database_url: str
) -> Iterator[World]:
    """Three replicas of identity over PostgreSQL."""
    with running(postgres_world(nursery, short, seed, server, database_url, ipam=False)) as world:
        yield world
