"""Short-lived directories of a run's own, and worlds of processes that are gone when a test is over."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.nursery import Nursery
from tests.faults.storm import World, seed_of_the_run, sqlite_world


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
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def lone(nursery: Nursery, short: Path, seed: int) -> Iterator[World]:
    """One ipam and one identity process over SQLite."""
    world = sqlite_world(nursery, short, seed)
    try:
        world.start()
        yield world
    finally:
        world.stop()
