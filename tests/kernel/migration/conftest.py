"""A node with two pods and flows between them, and sources of another version of its programs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kernel.bpf.cluster import Cluster
from tests.kernel.bpf.conftest import (
    SOURCES,
    cache_dir,
    namespaces,
    pin_dir,
    without_remnants,
)
from tests.kernel.bpf.namespaces import Namespaces
from tests.kernel.migration.flows import Flows
from tests.kernel.migration.upgrade import Upgrade, allow_one_way

__all__ = ["cache_dir", "namespaces", "pin_dir", "without_remnants"]

# The members of an entry move, and there is one more of them.
_BEFORE = "	__u32 pad;\n	struct ct_side side[2];"
_AFTER = "	__u32 pad;\n	__u64 test_added;\n	struct ct_side side[2];"


@pytest.fixture(scope="session")
def other_sources(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The datapath's sources with one more member in each conntrack entry, and a larger ipcache."""
    copy = tmp_path_factory.mktemp("other") / "bpf"
    shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("tests"))
    changed(copy / "lib" / "conntrack.h", _BEFORE, _AFTER)
    changed(
        copy / "lib" / "conntrack.h", "ASSERT_SIZE(struct ct_entry, 112)", "ASSERT_SIZE(struct ct_entry, 120)"
    )
    changed(copy / "lib" / "ipcache.h", "#define IPCACHE_MAX 131072", "#define IPCACHE_MAX 262144")
    return str(copy)


def changed(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text, f"{path} has changed: {before!r} is not in it"
    path.write_text(text.replace(before, after))


@pytest.fixture
def upgrade(
    namespaces: Namespaces, pin_dir: str, cache_dir: str, other_sources: str, tmp_path: Path
) -> Iterator[Upgrade]:
    """A node in force with pods ``web`` and ``client``; only what ``client`` begins may pass."""
    with ExitStack() as stack:
        cluster = Cluster(namespaces, pin_dir, cache_dir, stack)
        node = cluster.nodes[0]
        web = cluster.add_pod(node, "web", 1001)
        client = cluster.add_pod(node, "client", 1002)
        allow_one_way(node.node, web, client)
        made = Upgrade(
            node, web, client, f"{pin_dir}/node-1", cache_dir, other_sources, str(tmp_path / "state")
        )
        stack.callback(made.close)
        yield made


@pytest.fixture
def flows(upgrade: Upgrade) -> Iterator[Flows]:
    """TCP connections and a UDP flow from ``client`` to ``web``, each as fast as it is answered."""
    with Flows(upgrade.client, upgrade.web) as made:
        yield made
