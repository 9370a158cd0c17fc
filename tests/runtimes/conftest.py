"""A cluster a module, and its nodes' machines with Fimbria's configuration in them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.lab.preflight import ensure_bpffs
from tests.kernel.loader.rig import DUAL_POOL, REPOSITORY, Node, Rig, running_rig
from tests.runtimes import image
from tests.runtimes.containerd import Containerd
from tests.runtimes.cri import Cri, generate
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
    """More flags of the loaders; modules may have others."""
    return []


@pytest.fixture(scope="module")
def node_count() -> int:
    """How many nodes there are; modules may have more."""
    return 1


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, node_count: int, loader_flags: list[str]) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("rig")
    with running_rig(directory, nodes=node_count, cidrs=DUAL_POOL, flags=loader_flags) as made:
        yield made


@pytest.fixture(scope="module")
def machine(rig: Rig) -> Iterator[Machine]:
    """The first node's machine."""
    with configured_machine(rig.nodes[0]) as made:
        yield made


@contextmanager
def configured_machine(node: Node) -> Iterator[Machine]:
    """A node's machine, with the configuration that Fimbria is delivered with."""
    made = Machine(node, f"machine-{node.name}")
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


@pytest.fixture(scope="module")
def containerd(machine: Machine, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Containerd:
    return Containerd(machine, archive, generate(tmp_path_factory.mktemp("cri")))


@pytest.fixture
def cri(containerd: Containerd) -> Iterator[Cri]:
    with containerd.cri() as client:
        yield client
