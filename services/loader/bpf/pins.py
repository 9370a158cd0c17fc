"""The node's directory in bpffs: ``maps/<map>``, ``links/<device>/<program>``, ``progs/<program>``.

``pending`` and ``next`` are there while maps are migrated, each with ``maps`` and ``progs`` of its own: what
is in ``pending`` never was in force, what is in ``next`` is about to be.
"""

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

    @property
    def pending(self) -> PinDirectory:
        """What is being prepared."""
        return PinDirectory(os.path.join(self.path, "pending"))

    @property
    def next(self) -> PinDirectory:
        """What has been decided on."""
        return PinDirectory(os.path.join(self.path, "next"))

    def map_path(self, name: str) -> str:
        """Where a map is pinned."""
        return os.path.join(self.maps, name)

    def program_path(self, name: str) -> str:
        """Where a program is pinned."""
        return os.path.join(self.programs, name)

    def map_names(self) -> list[str]:
        """The maps that are pinned."""
        return names_in(self.maps)

    def program_names(self) -> list[str]:
        """The programs that are pinned."""
        return names_in(self.programs)

    def link(self, device: str, program: str) -> str:
        """Where the link of a program on a device is pinned."""
        # bpffs takes no dots in names, VLAN devices mostly have one, and no device has a colon.
        return os.path.join(self.path, "links", device.replace(".", ":"), program)

    def link_devices(self) -> list[str]:
        """The devices that have, or had, links pinned."""
        return [name.replace(":", ".") for name in names_in(os.path.join(self.path, "links"))]

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


def names_in(directory: str) -> list[str]:
    """What is pinned in a directory; nothing if it is not there."""
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


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
