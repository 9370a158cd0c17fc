"""A rig a module: services, two nodes with their loaders."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.kernel.loader.rig import Rig
from tests.kernel.netlink.namespaces import Namespaces
from tests.patience import patient


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Namespaces() as namespaces:
        made = Rig(tmp_path_factory.mktemp("rig"), namespaces)
        try:
            made.start()
            yield made
        finally:
            made.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Fails unless a condition comes true within ten seconds."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + patient(10)
        while not condition():
            assert time.monotonic() < deadline, "it did not come true"
            time.sleep(0.02)

    return wait
