"""Two nodes whose endpoints have netkit devices, and pods that talk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from services.loader.netlink.netkit import kernel_has_netkit
from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import DUAL_POOL, Pod, Rig
from tests.kernel.netlink.namespaces import Namespaces
from tests.patience import patient


@pytest.fixture(scope="session", autouse=True)
def netkit() -> None:
    """Skips on a kernel that has no such devices."""
    if not kernel_has_netkit():
        pytest.skip("netkit is not in this kernel, nor in any before 6.7")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Namespaces() as namespaces:
        made = Rig(
            tmp_path_factory.mktemp("rig"), namespaces, cidrs=DUAL_POOL, flags=["--endpoint-device=netkit"]
        )
        try:
            made.start()
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def pods(rig: Rig) -> Iterator[dict[str, Pod]]:
    """web and near on the first node; client and stranger on the second."""
    made = rig.four_pods()
    with echo_server(made["web"].namespace, 80), echo_server(made["client"].namespace, 80):
        yield made


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Fails unless a condition comes true within ten seconds."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + patient(10)
        while not condition():
            assert time.monotonic() < deadline, "it did not come true"
            time.sleep(0.02)

    return wait
