"""A rig a module: services, two nodes with their loaders."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.loader.rig import Rig, running_rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("rig")) as made:
        yield made
