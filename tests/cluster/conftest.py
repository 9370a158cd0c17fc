"""Labs for the tests of this directory: one a module, each in its own directory, removed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.lab import sweep
from cli.lab.lab import Lab

WEB, CLIENT, STRANGER = "shop/web", "shop/client", "shop/stranger"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with two nodes and no pods."""
    made = Lab(tmp_path_factory.mktemp("lab") / "lab")
    try:
        made.up(nodes=2)
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def shop(lab: Lab) -> Lab:
    """The lab with web on node-1, client and stranger on node-2."""
    lab.run(WEB, node="node-1", labels=["app=web"], ports=["http:80/TCP"])
    lab.run(CLIENT, node="node-2", labels=["app=client"])
    lab.run(STRANGER, node="node-2", labels=["app=stranger"])
    return lab


@pytest.fixture
def new_lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Makes labs that are not up yet; whatever becomes of them, they are removed."""
    made: list[Lab] = []

    def make(name: str = "lab") -> Lab:
        made.append(Lab(tmp_path / name))
        return made[-1]

    yield make
    for lab in made:
        sweep.remove(lab.paths)
