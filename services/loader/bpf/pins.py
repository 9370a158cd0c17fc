"""The node's directory in bpffs: ``maps/<map>``, ``links/<device>/<program>``, ``progs/<program>``."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from services.loader.bpf.errors import BpffsMissing


@dataclass(frozen=True, slots=True)
class PinDirectory:
    """Where a node's kernel objects are pinned."""

    path: str

    @property
    def maps(self) -> str:
        """Maps, by name."""
        return os.path.join(self.path, "maps")

    @property
    def programs(self) -> str:
        """The programs in force, by name."""
        return os.path.join(self.path, "progs")

    def link(self, device: str, program: str) -> str:
        """Where the link of a program on a device is pinned."""
        return os.path.join(self.path, "links", device, program)

    def make(self, devices: tuple[str, ...]) -> None:
        """Makes the directories, for root only.

        Raises BpffsMissing where the path is on another file system.
        """
        if not is_on_bpffs(self.path):
            raise BpffsMissing(self.path)
        for path in (
            self.maps,
            self.programs,
            *(os.path.dirname(self.link(device, "")) for device in devices),
        ):
            os.makedirs(path, mode=0o700, exist_ok=True)


def is_on_bpffs(path: str) -> bool:
    """Whether a path, which need not exist, is on a BPF file system."""
    path = os.path.abspath(path)
    best, kind = "", ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields, _, rest = line.partition(" - ")
            mount_point = fields.split()[4].encode("latin-1", "surrogateescape").decode("unicode_escape")
            inside = path == mount_point or path.startswith(mount_point.rstrip("/") + "/")
            # Of mounts over each other the last one counts.
            if inside and len(mount_point) >= len(best):
                best, kind = mount_point, rest.split()[0]
    return kind == "bpf"


def remove_pins(pin_dir: str) -> None:
    """Removes everything that is pinned for a node, and with its links the programs on the node's devices.

    Programs on endpoint devices stay until the devices go. A directory that is not there is fine.
    """
    if os.path.isdir(pin_dir):
        shutil.rmtree(pin_dir)
