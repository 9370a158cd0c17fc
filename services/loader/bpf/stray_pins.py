"""Pins of the node that nothing in force needs any more: what a crash, another configuration or another
version has left.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.loader.bpf.attach import link_program
from services.loader.bpf.pins import PinDirectory


@dataclass(frozen=True, slots=True)
class StrayPin:
    """A pin; ``path`` is relative to the node's directory."""

    kind: Literal["pin", "link", "map"]
    path: str
    detail: str


def find_stray_pins(
    pins: PinDirectory, *, maps: Collection[str], programs: Collection[str], devices: Collection[str]
) -> list[StrayPin]:
    """Pins of maps and programs that are not among these, links of devices that are not or are gone, and what
    a migration that never happened has prepared. To be called while none is under way.
    """
    found = [
        StrayPin("pin", f"maps/{name}", "no program in force uses the map")
        for name in _names(pins.maps)
        if name not in maps
    ]
    found += [
        StrayPin("pin", f"progs/{name}", "the program is not in force")
        for name in _names(pins.programs)
        if name not in programs
    ]
    for device in pins.link_devices():
        for name in _names(os.path.dirname(pins.link(device, ""))):
            where = os.path.relpath(pins.link(device, name), pins.path)
            if device not in devices:
                found.append(StrayPin("link", where, f"{device} is no device of this node"))
            elif link_program(pins.link(device, name)) is None:
                found.append(StrayPin("link", where, f"the device {device} that it was made for is gone"))
    for kind in ("maps", "progs"):
        for name in _names(os.path.join(pins.path, "pending", kind)):
            found.append(StrayPin("map", f"pending/{kind}/{name}", "of a migration that never happened"))
    return found


def remove_stray_pin(pins: PinDirectory, path: str) -> None:
    """Removes a pin that was found, and the directories that it leaves empty. Raises OSError."""
    pin = os.path.join(pins.path, path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(pin)
    for parent in Path(path).parents:
        if parent.parts and parent.parts[0] in ("links", "pending") and parent.parts != ("links",):
            # One that holds others stays.
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(pins.path, parent))


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
