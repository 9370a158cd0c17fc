"""Removing everything that carries a lab's name: processes, namespaces, pins, files — and nothing else.

Works from the directory's name alone, so it also removes what is left of a lab that was half made, half
removed, or whose directory somebody deleted.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from cli.errors import BadInput, CliError
from cli.lab import netns, process
from cli.lab.databases import remove_server
from cli.lab.files import locked, read_json
from cli.lab.paths import LabPaths
from cli.lab.postgres import Postgres


@dataclass
class Swept:
    """What was removed."""

    processes: int = 0
    namespaces: list[str] = field(default_factory=list)
    pins: bool = False
    files: bool = False
    kept: list[str] = field(default_factory=list)
    """Files in the directory that are not the lab's."""
    postgres: bool = False
    """The lab's PostgreSQL server, with its files."""

    @property
    def anything(self) -> bool:
        return bool(self.processes or self.namespaces or self.pins or self.files or self.postgres)


def refuse_foreign(paths: LabPaths) -> None:
    """Raise BadInput for a directory that holds something and was not made by a lab."""
    if paths.directory.exists() and not paths.directory.is_dir():
        raise BadInput(f"{paths.directory} is not a directory", reason="NOT_A_LAB")
    if not paths.directory.is_dir() or paths.marker.exists():
        return
    # A lock, or a marker half written: another `lab up` is just beginning here, or was killed then.
    own = (paths.lock.name, f".{paths.marker.name}.")
    foreign = sorted(name for name in os.listdir(paths.directory) if not name.startswith(own))
    if foreign:
        raise BadInput(
            f"{paths.directory} is not a lab: it has no {paths.marker.name}, but {foreign[0]}",
            reason="NOT_A_LAB",
            hint="give an empty or a new directory with --dir",
        )


def remove(paths: LabPaths) -> Swept:
    """Remove the lab; also one that is not there. Raises BadInput for a foreign directory."""
    refuse_foreign(paths)
    if not paths.marker.exists():
        _remove_scratch(paths)
        return _remove_kernel_state(paths)
    with locked(paths.lock):
        swept = _remove_kernel_state(paths)
        _remove_files(paths, swept)
    return swept


def _remove_kernel_state(paths: LabPaths) -> Swept:
    swept = Swept()
    # The database server goes last, and in order: a kill would leave its shared memory behind.
    server = Postgres(paths.postgres).process()
    # A process may be starting another one just now (a launcher its children): look until none is left.
    while found := [each for each in process.marked(paths.id) if each != server]:
        process.end(found, grace=0)
        swept.processes += len(found)
    swept.processes += server is not None
    swept.postgres = remove_server(paths)
    for name in netns.named(paths.netns_prefix):
        if netns.delete(name):
            swept.namespaces.append(name)
    if paths.pins.is_dir():
        shutil.rmtree(paths.pins)
        swept.pins = True
        remove_if_empty(paths.pins.parent)
    return swept


def _remove_files(paths: LabPaths, swept: Swept) -> None:
    marker = read_json(paths.marker)
    for folder in paths.folders:
        if folder.is_dir():
            shutil.rmtree(folder)
    paths.state.unlink(missing_ok=True)
    _remove_scratch(paths)
    paths.lock.unlink(missing_ok=True)
    # The marker goes last: as long as it is there, the next `down` finishes what this one began.
    paths.marker.unlink(missing_ok=True)
    swept.files = True
    swept.kept = sorted(name for name in os.listdir(paths.directory) if name != paths.lock.name)
    made = marker if isinstance(marker, dict) and marker.get("made_directory") else {}
    if made and remove_if_empty(paths.directory):
        for parent in made.get("made_parents", []):
            remove_if_empty(Path(parent))


def _remove_scratch(paths: LabPaths) -> None:
    """Remove files that a killed command was about to rename."""
    for final in (paths.marker, paths.state):
        for scratch in paths.directory.glob(f".{final.name}.*"):
            scratch.unlink(missing_ok=True)


def remove_if_empty(directory: Path) -> bool:
    """Remove `directory` if nothing is in it; True if it is gone."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def leftovers(paths: LabPaths) -> list[str]:
    """What there still is of a lab that should be gone, one line for each thing."""
    found = [f"process {item.pid}" for item in process.marked(paths.id)]
    found += [f"network namespace {name}" for name in netns.named(paths.netns_prefix)]
    if paths.pins.exists():
        found.append(f"BPF pins in {paths.pins}")
    if paths.postgres.exists():
        found.append(f"a PostgreSQL server's files in {paths.postgres}")
    if paths.marker.exists():
        found.append(f"files in {paths.directory}")
    return found


def require_removed(paths: LabPaths) -> None:
    """Raise CliError when something is left of the lab."""
    if found := leftovers(paths):
        raise CliError(f"not everything was removed: {', '.join(found)}", reason="LEFTOVERS")
