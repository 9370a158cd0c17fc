"""What the loader keeps on disk: endpoint records, releases that are still to be made, the node's
registration, numbers.

Every file is replaced as a whole (written aside, then renamed) and readable by root alone; a file that cannot
be read is set aside under another name and told of, never deleted and never in the way.

A kill at any moment loses nothing that was saved. What has to outlive the machine too, so that an address is
given back after a crash, is synced as well; that takes milliseconds and may be done in a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.loader import failpoints
from services.loader.endpoints.endpoint import EndpointRecord, record_from_json, record_to_json
from services.loader.state_file import TEMPORARY, read_state, remove_state, sync_state, write_state

_DAMAGED: Final = ".damaged"
# Numbers are handed out from a range that is on disk before the first of them is used.
_NUMBERS_AHEAD: Final = 4096


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file that could not be read: where it is now, and why."""

    path: Path
    problem: str


@dataclass(frozen=True, slots=True)
class PendingRelease:
    """Addresses that have to be given back and prefixes that have to be withdrawn (none: unknown or none).
    ``allocated_ns`` is when IPAM gave the addresses; 0: whichever the owner has.
    """

    owner: str
    prefixes: tuple[str, ...]
    allocated_ns: int = 0


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """The node as IPAM registered it: enough to start when IPAM is away."""

    name: str
    ipv4: str
    pool: str
    pod_cidrs: tuple[str, ...]
    router_ipv4: str
    ipv6: str = ""
    router_ipv6: str = ""


class StateDirectory:
    """The loader's files. One process at a time uses a directory; the caller sees to that."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._endpoints = root / "endpoints"
        self._releases = root / "releases"
        for directory in (root, self._endpoints, self._releases):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.damaged: list[Damaged] = []

    def load_endpoints(self) -> list[EndpointRecord]:
        """All endpoint records by number.

        Files that cannot be read are set aside and listed in ``damaged``, now and at every start until
        somebody removes them: their pods may still run.
        """
        records: dict[int, EndpointRecord] = {}
        for path in sorted(self._endpoints.glob(f"*{_DAMAGED}")):
            self.damaged.append(Damaged(path, "set aside before; remove it when its pod is gone"))
        for path in self._files(self._endpoints):
            try:
                record = record_from_json(read_state(path))
                if path.stem != str(record.id):
                    raise ValueError(f"it holds endpoint {record.id}")
            except (OSError, ValueError, KeyError, TypeError) as problem:
                self._set_aside(path, problem)
            else:
                records[record.id] = record
        return [records[number] for number in sorted(records)]

    def save_endpoint(self, record: EndpointRecord) -> None:
        """Stores a record. Raises OSError."""
        write_state(self._endpoints / f"{record.id}.json", record_to_json(record))

    def sync_endpoint(self, number: int) -> None:
        """Returns when a stored record is on disk; one that is gone again is fine. From any thread."""
        sync_state(self._endpoints / f"{number}.json")

    def delete_endpoint(self, number: int) -> None:
        """Removes a record; one that is not there is fine."""
        remove_state(self._endpoints / f"{number}.json")
        failpoints.passed("record.deleted")

    def load_releases(self) -> list[PendingRelease]:
        """Releases that are still to be made."""
        releases = []
        for path in self._files(self._releases):
            try:
                document = read_state(path)
                releases.append(
                    PendingRelease(
                        str(document["owner"]), _prefixes(document), int(document.get("allocated_ns", 0))
                    )
                )
            except (OSError, ValueError, KeyError, TypeError) as problem:
                self._set_aside(path, problem)
        return releases

    def save_release(self, release: PendingRelease) -> None:
        """Stores a release. Raises OSError."""
        document = {
            "owner": release.owner,
            "prefixes": list(release.prefixes),
            "allocated_ns": release.allocated_ns,
        }
        write_state(self._release_path(release.owner), document)

    def sync_release(self, owner: str) -> None:
        """Returns when a stored release is on disk; one that has been made is fine. From any thread."""
        sync_state(self._release_path(owner))

    def delete_release(self, owner: str) -> None:
        """Forgets a release that has been made."""
        remove_state(self._release_path(owner))

    def load_node(self) -> NodeRecord | None:
        """The node's registration, if there was one."""
        path = self._root / "node.json"
        try:
            document = read_state(path)
            return NodeRecord(
                name=str(document["name"]),
                ipv4=str(document["ipv4"]),
                pool=str(document["pool"]),
                pod_cidrs=tuple(str(cidr) for cidr in document["pod_cidrs"]),
                router_ipv4=str(document["router_ipv4"]),
                # Absent from what was written before there was IPv6.
                ipv6=str(document.get("ipv6", "")),
                router_ipv6=str(document.get("router_ipv6", "")),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as problem:
            self._set_aside(path, problem)
            return None

    def save_node(self, node: NodeRecord) -> None:
        """Stores the node's registration."""
        document = {
            "name": node.name,
            "ipv4": node.ipv4,
            "pool": node.pool,
            "pod_cidrs": list(node.pod_cidrs),
            "router_ipv4": node.router_ipv4,
            "ipv6": node.ipv6,
            "router_ipv6": node.router_ipv6,
        }
        write_state(self._root / "node.json", document)

    def load_boot(self) -> str:
        """The boot in which the endpoints were last seen; empty when that is not known."""
        path = self._root / "boot.json"
        try:
            return str(read_state(path)["boot_id"])
        except FileNotFoundError:
            return ""
        except (OSError, ValueError, KeyError, TypeError) as problem:
            self._set_aside(path, problem)
            return ""

    def save_boot(self, boot: str) -> None:
        """The endpoints that there are belong to this boot. Raises OSError."""
        write_state(self._root / "boot.json", {"boot_id": boot})

    def numbers(self, name: str, *, at_least: int = 1, ahead: int = _NUMBERS_AHEAD) -> Numbers:
        """A sequence of numbers that never gives one out twice, whatever dies; it starts at ``at_least`` or
        later.

        Up to ``ahead`` numbers are skipped at each start.
        """
        path = self._root / f"{name}.json"
        reserved = 0
        try:
            reserved = int(read_state(path)["reserved"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as problem:
            self._set_aside(path, problem)
        return Numbers(path, max(reserved, at_least), ahead)

    def _release_path(self, owner: str) -> Path:
        return self._releases / f"{hashlib.sha256(owner.encode()).hexdigest()[:32]}.json"

    def _files(self, directory: Path) -> list[Path]:
        found = []
        for path in sorted(directory.iterdir()):
            if path.suffix == TEMPORARY:
                # Left by a writer that died before its rename: it never counted.
                remove_state(path)
            elif path.suffix == ".json":
                found.append(path)
        return found

    def _set_aside(self, path: Path, problem: Exception) -> None:
        aside = path.with_name(path.name + _DAMAGED)
        with contextlib.suppress(OSError):
            os.replace(path, aside)
        self.damaged.append(Damaged(aside, f"{type(problem).__name__}: {problem}"))


class Numbers:
    """Numbers in ascending order, reserved on disk in advance."""

    def __init__(self, path: Path, start: int, ahead: int) -> None:
        self._path = path
        self._next = start
        self._ahead = ahead
        self._reserve()

    def take(self) -> int:
        """The next number. Raises OSError when a new range cannot be stored."""
        if self._next >= self._reserved:
            self._reserve()
        number = self._next
        self._next += 1
        return number

    def _reserve(self) -> None:
        write_state(self._path, {"reserved": self._next + self._ahead})
        self._reserved = self._next + self._ahead


def _prefixes(document: dict[str, Any]) -> tuple[str, ...]:
    if "prefixes" in document:
        return tuple(str(prefix) for prefix in document["prefixes"])
    # Written before there was IPv6: one prefix, or an empty text.
    return (str(document["prefix"]),) if document["prefix"] else ()
