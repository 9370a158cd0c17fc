"""What pods leave in the cluster and on their node while they are there, and must not leave after."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.kernel.loader.rig import Rig
from tests.runtimes.machine import Machine, wait_until

# Kernel maps that have rows for endpoints, by key.
MAPS = ("endpoint_dev", "endpoint_ip4", "ipcache4", "subject")


@dataclass(frozen=True)
class Footprint:
    """Owners of addresses, published prefixes, endpoints, devices, queued deletions, rows, namespaces."""

    owners: frozenset[str]
    published: frozenset[str]
    endpoints: frozenset[int]
    links: frozenset[str]
    queued: frozenset[str]
    rows: frozenset[str]
    netns: frozenset[str]


def footprint(rig: Rig, machine: Machine) -> Footprint:
    """As it is now."""
    node = machine.node
    return Footprint(
        owners=frozenset(rig.owners()),
        published=frozenset(rig.published()),
        endpoints=frozenset(endpoint.id for endpoint in node.endpoints()),
        links=frozenset(machine.links()),
        queued=frozenset(path.name for path in (node.directory / "deletes").iterdir()),
        rows=frozenset(row for name in MAPS for row in _rows(rig, machine, name)),
        netns=frozenset(path.name for path in machine.path("/run/netns").iterdir()),
    )


@contextmanager
def nothing_left(rig: Rig, machine: Machine) -> Iterator[Footprint]:
    """After the block everything is as it was before it, or comes to be within a minute."""
    before = footprint(rig, machine)
    yield before
    after = before

    def same() -> bool:
        nonlocal after
        after = footprint(rig, machine)
        return after == before

    try:
        wait_until(same)
    except AssertionError:
        assert after == before


def _rows(rig: Rig, machine: Machine, name: str) -> set[str]:
    path = rig.pin_root / machine.node.name / "maps" / name
    done = subprocess.run(
        ["bpftool", "-j", "map", "dump", "pinned", str(path)], check=True, capture_output=True, text=True
    )
    return {f"{name} {json.dumps(row['key'])}" for row in json.loads(done.stdout)}
