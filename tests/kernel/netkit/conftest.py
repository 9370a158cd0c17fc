"""Two nodes whose endpoints have netkit devices, and pods that talk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.loader.netlink.netkit import kernel_has_netkit
from tests.kernel.echo import echo_server
from tests.kernel.loader.rig import DUAL_POOL, Pod, Rig, running_rig


@pytest.fixture(scope="session", autouse=True)
def netkit() -> None:
    """Skips on a kernel that has no such devices."""
    if not kernel_has_netkit():
        pytest.skip("netkit is not in this kernel, nor in any before 6.7")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(
        tmp_path_factory.mktemp("rig"), cidrs=DUAL_POOL, flags=["--endpoint-device=netkit"]
    ) as made:
        yield made


@pytest.fixture(scope="module")
def pods(rig: Rig) -> Iterator[dict[str, Pod]]:
    """web and near on the first node; client and stranger on the second."""
    made = rig.four_pods()
    with echo_server(made["web"].namespace, 80), echo_server(made["client"].namespace, 80):
        yield made
