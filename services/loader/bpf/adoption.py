"""What is in force, written down, so that a restart with the same finds it and loads nothing.

The record is believed only as far as the kernel agrees: ids and tags of what is pinned are compared with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.loader.bpf.maps import Map
from services.loader.bpf.objects import Program
from services.loader.state_file import read_state, sync_state, write_state

_FILE = "datapath.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class InForce:
    """What was loaded last: ``fingerprint`` of all that it was made of, ids and tags of the programs, ids of
    the maps; ``resized`` maps have not the size that the programs declare.
    """

    fingerprint: str
    programs: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    maps: Mapping[str, int] = field(default_factory=dict)
    resized: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, fingerprint: str, programs: Mapping[str, Program], maps: Iterable[Map], resized: Iterable[str]
    ) -> InForce:
        """These programs and maps."""
        return cls(
            fingerprint,
            {name: (program.id, program.tag) for name, program in programs.items()},
            {each.name: each.id for each in maps},
            tuple(sorted(resized)),
        )

    def agrees(self, fingerprint: str, programs: Mapping[str, Program], maps: Iterable[Map]) -> bool:
        """Whether that is what is in the kernel."""
        return (
            self.fingerprint == fingerprint
            and self.programs == {name: (each.id, each.tag) for name, each in programs.items()}
            and self.maps == {each.name: each.id for each in maps}
        )


def fingerprint(
    objects: Iterable[str], constants: Mapping[str, bytes], map_sizes: Mapping[str, int], flags: Iterable[str]
) -> str:
    """A digest of what programs are made of: the objects' content (paths), the configuration, the sizes."""
    digest = hashlib.sha256(f"{_VERSION}".encode())
    for path in objects:
        digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    for name, value in sorted(constants.items()):
        digest.update(f"\0{name}={value.hex()}".encode())
    for name, size in sorted(map_sizes.items()):
        digest.update(f"\0{name}={size}".encode())
    for flag in flags:
        digest.update(f"\0{flag}".encode())
    return digest.hexdigest()


def load_record(state_dir: str) -> InForce | None:
    """What was written last; None if nothing was, or it cannot be read, or there is no such directory."""
    if not state_dir:
        return None
    try:
        data = read_state(Path(state_dir, _FILE))
        programs = {name: (int(number), str(tag)) for name, (number, tag) in data["programs"].items()}
        maps = {name: int(number) for name, number in data["maps"].items()}
        return InForce(str(data["fingerprint"]), programs, maps, tuple(data["resized"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def save_record(state_dir: str, record: InForce) -> None:
    """Writes it, in one step. Raises OSError."""
    if state_dir:
        content = {
            "fingerprint": record.fingerprint,
            "programs": {name: list(each) for name, each in record.programs.items()},
            "maps": dict(record.maps),
            "resized": list(record.resized),
        }
        path = Path(state_dir, _FILE)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_state(path, content)
        sync_state(path)
