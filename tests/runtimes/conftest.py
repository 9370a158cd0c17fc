"""A cluster of one node a module, and its machine with Fimbria's configuration in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.lab.preflight import ensure_bpffs
from tests.kernel.loader.rig import DUAL_POOL, REPOSITORY, Rig
from tests.kernel.netlink.namespaces import Namespaces
from tests.runtimes import image
from tests.runtimes.machine import Machine, sweep_cgroups

CONFLIST = REPOSITORY / "deploy" / "cni" / "10-fimbria.conflist"
CONFLIST_PLACE = "/etc/cni/net.d/10-fimbria.conflist"
CONTAINERS_CONF = REPOSITORY / "deploy" / "podman" / "containers.conf"


@pytest.fixture(autouse=True, scope="session")
def bpffs() -> None:
    """The BPF file system is mounted, and no control groups are left of test runs that were killed."""
    if os.geteuid() == 0:
        ensure_bpffs()
        sweep_cgroups()


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image that the containers run."""
    return image.build(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def loader_flags() -> list[str]:
    """More flags of the node's loader; modules may have others."""
    return []


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, loader_flags: list[str]) -> Iterator[Rig]:
    with Namespaces() as namespaces:
        made = Rig(tmp_path_factory.mktemp("rig"), namespaces, nodes=1, cidrs=DUAL_POOL, flags=loader_flags)
        try:
            made.start()
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def machine(rig: Rig) -> Iterator[Machine]:
    """The node's machine, with the configuration that Fimbria is delivered with."""
    (node,) = rig.nodes
    made = Machine(node, "machine")
    try:
        made.write(CONFLIST_PLACE, conflist(made))
        made.write("/etc/containers/policy.json", '{"default": [{"type": "insecureAcceptAnything"}]}')
        made.write("/etc/containers/containers.conf", CONTAINERS_CONF.read_text())
        yield made
    finally:
        made.close()


def conflist(machine: Machine, *chained: dict[str, Any], **members: Any) -> str:
    """The delivered configuration with the socket of the machine's node, other members, more plugins."""
    config = json.loads(CONFLIST.read_text())
    config["plugins"][0] |= {"socket": str(machine.node.socket), **members}
    config["plugins"] += chained
    return json.dumps(config)
