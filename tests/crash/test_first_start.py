"""A node that has nothing yet, whose loader dies as it sets it up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from services.loader.bpf.pins import remove_pins
from services.loader.failpoints import VARIABLE
from tests.crash.cluster import settle
from tests.crash.invariants import Expected, every_problem
from tests.kernel.loader.rig import DUAL_POOL, Rig, running_rig

pytestmark = pytest.mark.kernel

PLACES: Final = (
    "load.compiled",
    "load.loaded",
    "attach.link_created",
    "attach.link_pinned",
    "pin.program",
    "pin.program:3",
    "subject.row",
    "subject.turned",
    "policy.in_force",
)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("first"), nodes=1, cidrs=DUAL_POOL) as made:
        yield made


@pytest.mark.parametrize("place", PLACES)
def test_killed_there_the_next_start_sets_the_node_up(rig: Rig, place: str) -> None:
    (node,) = rig.nodes
    node.loader.kill()
    # As after a reboot: records are there, nothing in the kernel is.
    remove_pins(str(rig.pins(node)))
    for device in ("fimbria_host", "fimbria_vxlan"):
        node.namespace.command("ip", "link", "delete", device)
    node.loader.environment = {VARIABLE: place}
    node.loader.start(wait=False)
    assert node.loader.running is not None
    assert node.loader.running.wait(timeout=30) == -9, f"{place} is not passed"
    node.loader.environment = {}
    node.loader.start()
    pod = rig.pod(node, f"first-{place.replace('.', '-').replace(':', '-').replace('_', '-')}", app="first")
    pod.add()
    settle(lambda: every_problem(rig, node, Expected({pod.container_id})))
    pod.delete()
    settle(lambda: every_problem(rig, node, Expected()))
