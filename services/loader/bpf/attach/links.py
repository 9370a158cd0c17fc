"""Pinned links: updated in place while they hold their device, made anew when they do not.

A link whose device is gone, or that somebody detached, is still there and holds nothing: it is defunct.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from services.loader.bpf.attach.declarations import link_info, open_pin
from services.loader.bpf.errors import BpfError
from services.loader.bpf.native import check, ffi, lib, said
from services.loader.failpoints import passed


@dataclass(frozen=True, slots=True)
class LinkState:
    """What a pinned link holds: ``kind`` is enum bpf_link_type, ``ifindex`` 0 for a defunct one, ``program``
    the kernel's id. ``attach_type`` only means something for tcx and netkit.
    """

    kind: int
    ifindex: int
    attach_type: int
    program: int


def link_state(pin: str) -> LinkState | None:
    """The link that is pinned there, or None."""
    link = open_pin(pin)
    if link is None:
        return None
    try:
        return _state(link)
    finally:
        os.close(link)


def put_link(pin: str, program: int, holds: Callable[[LinkState], bool], create: Callable[[], int]) -> bool:
    """Lets a pinned link hold a program (by descriptor). Returns whether it was there and only updated.

    ``holds`` tells whether a link is the one that is wanted; if not, ``create`` makes one (a descriptor, or
    raises) and takes over the pin's name, and with it the old one ends. Raises BpfError.
    """
    link = open_pin(pin)
    try:
        if link is not None and holds(_state(link)):
            result = lib.bpf_link_update(link, program, ffi.NULL)
            # ENOLINK: its device went just now.
            if result != -errno.ENOLINK:
                check(result, f"update link {pin}")
                passed("attach.replaced")
                return True
            said()
        created = create()
        try:
            passed("attach.link_created")
            os.makedirs(os.path.dirname(pin), mode=0o700, exist_ok=True)
            pin_replacing(created, pin)
            passed("attach.link_pinned")
        finally:
            os.close(created)
        if link is not None:
            # Without its pin it ends too, but only when the kernel comes to it.
            lib.bpf_link_detach(link)
            said()
        return False
    finally:
        if link is not None:
            os.close(link)


def remove_link(pin: str) -> bool:
    """Detaches the link that is pinned there, at once, and removes the pin. Returns whether there was one."""
    link = open_pin(pin)
    if link is None:
        return False
    try:
        # Removing the pin alone leaves it to the kernel when the program stops to run.
        lib.bpf_link_detach(link)
        said()
    finally:
        os.close(link)
    try:
        os.unlink(pin)
    except FileNotFoundError:
        pass
    return True


def pin_replacing(fd: int, path: str) -> None:
    """Pins an object at ``path``, replacing what is there in one step."""
    new = f"{path}_new"  # bpffs takes no dots in names
    try:
        os.unlink(new)
    except FileNotFoundError:
        pass
    check(lib.bpf_obj_pin(fd, new.encode()), f"pin {path}")
    try:
        os.rename(new, path)
    except OSError as error:
        os.unlink(new)
        raise BpfError(error.errno or errno.EIO, f"pin {path}") from error


def _state(link: int) -> LinkState:
    info = link_info(link)
    return LinkState(int(info.type), int(info.ifindex), int(info.attach_type), int(info.prog_id))
