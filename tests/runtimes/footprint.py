"""What pods leave in the cluster and on their node while they are there, and must not leave after."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from tests.kernel.loader.rig import Rig
from tests.runtimes.machine import Machine, wait_until

SECONDS = 30.0
# Kernel maps that have rows for endpoints, by key.
MAPS = ("endpoint_dev", "endpoint_ip4", "endpoint_ip6", "ipcache4", "ipcache6")
SUBJECTS = "subject"


@dataclass(frozen=True)
class Footprint:
    """Owners of addresses, published prefixes, endpoints, devices, waiting DELs, rows of maps, namespaces."""

    owners: frozenset[str]
    published: frozenset[str]
    endpoints: frozenset[int]
    links: frozenset[str]
    queued: frozenset[str]
    rows: frozenset[str]
    subjects: int
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
        # A loader that is started again may number them anew.
        subjects=len(_rows(rig, machine, SUBJECTS)),
        netns=frozenset(machine.namespaces()),
    )


@contextmanager
def nothing_left(rig: Rig, machine: Machine) -> Iterator[Footprint]:
    """After the block everything is as it was before it, or comes to be within half a minute."""
    before = footprint(rig, machine)
    yield before
    after = before

    def same() -> bool:
        nonlocal after
        after = footprint(rig, machine)
        return after == before

    try:
        wait_until(same, SECONDS)
    except AssertionError:
        raise AssertionError(f"left or lost: {differences(before, after)}") from None


def differences(before: Footprint, after: Footprint) -> dict[str, list[str]]:
    """What came ("+") and what went ("-"), by kind."""
    found = {}
    for field in fields(Footprint):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old != new and isinstance(old, int):
            found[field.name] = [f"{old} -> {new}"]
        elif old != new:
            found[field.name] = [f"+{each}" for each in new - old] + [f"-{each}" for each in old - new]
    return found


def _rows(rig: Rig, machine: Machine, name: str) -> set[str]:
    path = rig.pin_root / machine.node.name / "maps" / name
    done = subprocess.run(
        ["bpftool", "-j", "map", "dump", "pinned", str(path)], check=True, capture_output=True, text=True
    )
    return {f"{name} {json.dumps(row['key'])}" for row in json.loads(done.stdout)}
